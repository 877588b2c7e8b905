"""What exactly answered: which of it the bytes prove, and which of it somebody declared."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from medvllm.metadata import ModelMetadata
from medvllm.options import Identity

LIBRARIES = ("medvllm", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")
_FORMAT = 1  # changes when a key of `to_dict` changes its meaning or goes; keys may be added


@cache
def library_versions() -> Mapping[str, str]:
    """Return the installed version of each library that takes part in an answer; nothing is imported."""
    from importlib import metadata as packages

    found = {}
    for library in LIBRARIES:
        try:
            found[library] = packages.version(library)
        except packages.PackageNotFoundError:
            found[library] = "not installed"
    return found


def digest_of(rows: Iterable[tuple[str, str, int]]) -> str:
    """Return one SHA-256 for files given as path, SHA-256 and size: of a line "SHA-256  size  path" each, sorted."""
    from hashlib import sha256

    lines = "".join(f"{sha256}  {size}  {path}\n" for path, sha256, size in sorted(rows))
    return sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class Proof:
    """What the bytes of a loaded model say: `files` and `converted` give size and SHA-256 by path.

    They are those that were read. `changed` names what is no longer the same on disk: a model that is mapped from such
    a file may have changed with it.
    """

    commit: str | None  # None for a folder, and for a commit that the Hub itself did not show to this machine
    files: dict[str, dict[str, Any]]
    converted: dict[str, dict[str, Any]]  # safetensors that were made of a pickle among `files`
    locked: bool  # whether the lock file approves them, and they are unchanged, at the time of the receipt
    changed: list[str]
    architecture: str | None  # the config's own model_type
    size_bytes: int  # in memory
    tokenizer_sha256: str | None  # of the tokenizer as it works: vocabulary, casing, length; None without one
    labels_sha256: str | None  # of the label map; None for a model without named labels

    @property
    def digest(self) -> str:
        """One SHA-256 for all files."""
        rows = (*self.files.items(), *self.converted.items())
        return digest_of((path, row["sha256"], row["size"]) for path, row in rows)


@dataclass(frozen=True)
class Receipt:
    """The facts of one loaded model. `origin` is "direct" for a name that no entry answers to.

    `proof` is verified, as it comes from the bytes; `declared` is what the entry says of them, each fact with where it
    was seen.
    """

    name: str
    version: int
    origin: str
    snapshot: str  # "repo@commit", or the folder
    options: dict[str, Any]  # those in effect
    proof: Proof
    declared: dict[str, dict[str, Any]]
    libraries: dict[str, str] = field(default_factory=lambda: dict(library_versions()))
    package: str | None = None  # name and version of the package that the entry comes from

    @classmethod
    def of(
        cls, metadata: ModelMetadata, identity: Identity, commit: str | None, proof: Proof, bundle: str | None = None
    ) -> "Receipt":
        """Return the receipt of a load; `commit` is the one that the files are said to be of, by a `bundle` or not."""
        provenance = metadata.provenance
        facts = metadata.facts()
        declared = {
            fact: {"value": value, "provenance": provenance.get(fact)}
            for fact, value in facts.items()
            if fact not in ("provenance", "baseline")
        }
        if commit is not None and proof.commit is None:
            said_by = f"the bundle {bundle} that it was imported from" if bundle else "the Hub's cache on this machine"
            declared["commit"] = {"value": commit, "provenance": said_by}
        options = identity.options.to_dict()
        return cls(
            identity.name,
            identity.version,
            identity.origin,
            identity.snapshot,
            options,
            proof,
            declared,
            package=metadata.package,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the receipt as JSON, with sorted keys: what the history keeps of a load."""
        from hashlib import sha256

        return sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON has it, under keys that stay."""
        return {
            "format": _FORMAT,
            "name": self.name,
            "version": self.version,
            "origin": self.origin,
            **({} if self.package is None else {"package": self.package}),
            "snapshot": self.snapshot,
            "verified": {"digest": self.proof.digest, **vars(self.proof)},
            "declared": self.declared,
            "options": self.options,
            "libraries": self.libraries,
        }

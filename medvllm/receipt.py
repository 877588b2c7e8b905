"""Receipts: what exactly answered. Facts that the bytes prove are kept apart from facts that somebody declared."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from medvllm.metadata import ModelMetadata
from medvllm.options import Identity

LIBRARIES = ("medvllm", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")
_FORMAT = 1  # a key of `to_dict` that changes its meaning or is removed needs a new number; new keys do not


@cache
def library_versions() -> Mapping[str, str]:
    """Return the installed version of each library that takes part in an answer, without importing it."""
    from importlib import metadata as packages

    found = {}
    for library in LIBRARIES:
        try:
            found[library] = packages.version(library)
        except packages.PackageNotFoundError:
            found[library] = "not installed"
    return found


def digest_of(rows: Iterable[tuple[str, str, int]]) -> str:
    """Return one SHA-256 for several files.

    Args:
        rows: Path, SHA-256 and size of each file. The hash is that of the lines "SHA-256  size  path", sorted by path.
    """
    from hashlib import sha256

    lines = "".join(f"{sha256}  {size}  {path}\n" for path, sha256, size in sorted(rows))
    return sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class Proof:
    """What the bytes of a loaded model prove.

    Attributes:
        commit: The commit; None for a folder, and for a commit whose listing the Hub did not give to this machine.
        files: Size and SHA-256 of each file as it was read, by path.
        converted: The same for safetensors that were made of a pickle.
        locked: Whether the lock file approves the files, and they are unchanged when the receipt is made.
        changed: Files that have changed on the disk since. A model that is mapped from one may have changed with it.
        architecture: The `model_type` of the config.
        size_bytes: Bytes in memory.
        tokenizer_sha256: Digest of the tokenizer as it works: vocabulary, casing, length; None without a tokenizer.
        labels_sha256: Digest of the label map; None without named labels.
    """

    commit: str | None
    files: dict[str, dict[str, Any]]
    converted: dict[str, dict[str, Any]]
    locked: bool
    changed: list[str]
    architecture: str | None
    size_bytes: int
    tokenizer_sha256: str | None
    labels_sha256: str | None

    @property
    def digest(self) -> str:
        """One SHA-256 for all files."""
        rows = (*self.files.items(), *self.converted.items())
        return digest_of((path, row["sha256"], row["size"]) for path, row in rows)


@dataclass(frozen=True)
class Receipt:
    """The facts of one loaded model.

    Attributes:
        name: The entry's name.
        version: The entry's version.
        origin: Where the entry comes from; "direct" without an entry.
        snapshot: "repo@commit", or the folder.
        options: The load options in effect.
        proof: What the bytes prove.
        declared: What the entry says, with the provenance of each fact.
        libraries: The installed versions of the libraries.
        package: Name and version of the package that the entry comes from.
    """

    name: str
    version: int
    origin: str
    snapshot: str
    options: dict[str, Any]
    proof: Proof
    declared: dict[str, dict[str, Any]]
    libraries: dict[str, str] = field(default_factory=lambda: dict(library_versions()))
    package: str | None = None

    @classmethod
    def of(
        cls, metadata: ModelMetadata, identity: Identity, commit: str | None, proof: Proof, bundle: str | None = None
    ) -> "Receipt":
        """Return the receipt of a load.

        Args:
            metadata: The entry.
            identity: The identity of the load.
            commit: The commit that the files are said to belong to.
            proof: What the bytes prove.
            bundle: The SHA-256 of the bundle that says so, if the files came in one.
        """
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
        """SHA-256 of the receipt as JSON with sorted keys. The history keeps it for each load."""
        from hashlib import sha256

        return sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON values. The keys do not change."""
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

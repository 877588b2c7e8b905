"""Receipts: which model produced a result. They separate what the bytes prove from what an entry declares."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from medvllm.metadata import ModelMetadata
from medvllm.options import Identity

LIBRARIES = ("medvllm", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")
_FORMAT = 1  # increase it when a key of `to_dict` is removed or gets another meaning; a new key needs no new format


@cache
def library_versions() -> Mapping[str, str]:
    """Return the installed version of each library that can affect a result, without importing any of them."""
    from importlib import metadata as packages

    found = {}
    for library in LIBRARIES:
        try:
            found[library] = packages.version(library)
        except packages.PackageNotFoundError:
            found[library] = "not installed"
    return found


def digest_of(rows: Iterable[tuple[str, str, int]]) -> str:
    """Return one SHA-256 for a set of files.

    It is the SHA-256 of one line "SHA-256  size  path" for each file, sorted by path.

    Args:
        rows: The path, SHA-256 and size of each file.
    """
    from hashlib import sha256

    lines = "".join(f"{sha256}  {size}  {path}\n" for path, sha256, size in sorted(rows))
    return sha256(lines.encode()).hexdigest()


@dataclass(frozen=True)
class Proof:
    """What the bytes of a loaded model prove.

    Attributes:
        commit: The commit on the Hub. None for a folder, and for a commit that this machine did not get from the Hub.
        files: The size and SHA-256 of each file that was read, by path.
        converted: The same for each safetensors file that was converted from a pickle in `files`.
        locked: Whether the lock file approves the files and they are unchanged, at the time of the receipt.
        changed: The files that have changed on disk since they were read. A model that is mapped from such a file may
            have changed too.
        architecture: The model_type in the config.
        dtype: The dtype of the checkpoint. The one that computes is in the options.
        size_bytes: The size of the model in memory.
        tokenizer_sha256: A hash of the tokenizer in use: its vocabulary, casing and maximum length. None without one.
        labels_sha256: A hash of the label map. None for a model without named labels.
    """

    commit: str | None
    files: dict[str, dict[str, Any]]
    converted: dict[str, dict[str, Any]]
    locked: bool
    changed: list[str]
    architecture: str | None
    dtype: str | None
    size_bytes: int
    tokenizer_sha256: str | None
    labels_sha256: str | None

    @property
    def digest(self) -> str:
        """One SHA-256 for `files` and `converted`."""
        rows = (*self.files.items(), *self.converted.items())
        return digest_of((path, row["sha256"], row["size"]) for path, row in rows)


@dataclass(frozen=True)
class Receipt:
    """The facts about one loaded model.

    Attributes:
        name: The name of the entry.
        version: The version of the entry.
        origin: Where the entry comes from, or "direct" for a model that is loaded without an entry.
        snapshot: "repo@commit", or the folder.
        options: The options in effect.
        proof: What medvllm verified from the bytes.
        declared: What the entry says about the model. Each fact has its `value` and its `provenance`: where it was
            seen.
        libraries: The versions of the installed libraries.
        package: Name and version of the installed package that the entry comes from.
        base: The receipt of an adapter's base.
        engine: What computes, with its agreement with torch; or why torch does, if an engine was asked for. None if
            none was.
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
    base: "Receipt | None" = None
    engine: dict[str, Any] | None = None

    @classmethod
    def of(
        cls, metadata: ModelMetadata, identity: Identity, commit: str | None, proof: Proof, bundle: str | None = None
    ) -> "Receipt":
        """Return the receipt of a load.

        Args:
            metadata: The facts of the entry.
            identity: The key of the loaded model.
            commit: The commit that the files are said to come from. If the proof has none, it is only declared.
            proof: What the bytes prove.
            bundle: The bundle that the files were imported from, if any.
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
        """The SHA-256 of the receipt as JSON with sorted keys. The history records it for a load."""
        from hashlib import sha256

        return sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON values. The keys are stable: later releases may only add some."""
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
            **({} if self.base is None else {"base": self.base.to_dict()}),
            **({} if self.engine is None else {"engine": self.engine}),
        }

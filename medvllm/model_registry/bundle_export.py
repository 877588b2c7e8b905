"""Exports models into a bundle: their entries, files and lock in one file, for a site without a network."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medvllm import __version__, destination
from medvllm.author import now, who
from medvllm.catalog import Catalog, Found, to_toml
from medvllm.catalog.events import Alias
from medvllm.errors import DigestMismatchError, OutputError, RequestError
from medvllm.metadata import ModelMetadata
from medvllm.model_registry.adapter_base import find_base
from medvllm.model_registry.snapshots import Snapshots
from medvllm.names import valid_name
from medvllm.sources import Lock, LockedModel, Snapshot, bundle, followed_branch
from medvllm.sources.bundle import ExportRecord, signing


@dataclass(frozen=True)
class Exported:
    """A bundle that was written."""

    path: str
    models: tuple[str, ...]  # with the versions that have numbers
    aliases: tuple[str, ...]  # such as "m@production -> 3"
    size_bytes: int
    sha256: str  # of the file
    contents: str  # a digest of the models alone, whoever exports them and when
    export_record: ExportRecord
    signature: str | None = None  # the path of the signature

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return vars(self) | {"export_record": self.export_record.to_dict()}


def export_bundle(
    catalog: Catalog,
    snapshots: Snapshots,
    target: Path,
    names: "Sequence[str | os.PathLike[str]]",
    *,
    unlocked: bool,
    replace: bool,
    sign: Path | None,
) -> Exported:
    """Write models into a bundle; the arguments are those of `ModelRegistry.export`.

    Raises:
        DigestMismatchError: Nobody has approved a model's files, and `unlocked` is not set.
        OutputError: The file cannot be written, or exists and `replace` is not set.
        RequestError: Two models would have one name, or the bundle cannot be signed.
    """
    # All names and the target are checked before anything is fetched.
    _check_target(target, replace=replace, key=sign)
    asked = _with_bases(catalog, [snapshots.find(name) for name in names])
    contents = _Contents(Lock.current(), unlocked)
    for found in asked:
        contents.add(found, snapshots.get(*found))
    # Write entries, files and lock.
    aliases = contents.find_aliases(catalog)
    events, last_hash = catalog.stored.position() if catalog.has_stored else (0, "")
    export_record = ExportRecord(who(), socket.gethostname(), now(), f"medvllm {__version__}", events, last_hash)
    entries = to_toml(contents.entries.values(), aliases)
    written = bundle.write_bundle(target, entries, contents.models, contents.branches, export_record)
    signature = None if sign is None else str(signing.sign_bundle(target, sign))
    return Exported(
        path=str(target),
        models=tuple(contents.models),
        aliases=tuple(f"{alias.name}@{alias.alias} -> {alias.version}" for alias in aliases),
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        contents=written.contents,
        export_record=export_record,
        signature=signature,
    )


def _with_bases(catalog: Catalog, asked: Sequence[Found]) -> list[Found]:
    """Return models with the bases of the adapters among them: an adapter is of no use without its base."""
    whole = list(asked)
    for found in asked:
        if found.entry.is_adapter:
            base = Found(find_base(catalog, found.entry), None)
            whole += [base] if base not in whole else []
    return whole


@dataclass
class _Contents:
    """What goes into a bundle, by the name that it has there: `m@2`, or `m` for an entry without a number."""

    lock: Lock
    unlocked: bool  # whether models that nobody has approved may go
    models: dict[str, tuple[Snapshot, LockedModel]] = field(default_factory=dict)
    entries: dict[str, ModelMetadata] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    versions: dict[str, set[int]] = field(default_factory=dict)  # stored versions by name: their aliases go too

    def add(self, found: Found, snapshot: Snapshot) -> None:
        """Add a model, given as it was asked for, and its files."""
        metadata = found.entry
        if not (snapshot.locked or self.unlocked):
            raise DigestMismatchError(
                f"Model {metadata.reference!r} is not in {self.lock.file}: nobody has approved its files.\n"
                f"Approve it: medvllm lock {metadata.reference}\nOr export it without approval: --unlocked",
                model=metadata.name,
                files=(),
            )
        entry = _as_it_travels(metadata, snapshot)
        key, approved = entry.reference, self.lock.get(metadata)
        before = self.models.get(key, (snapshot,))[0], self.entries.get(key, entry)
        if before != (snapshot, entry):
            raise RequestError(
                f"A bundle can hold one model of each name, but {key!r} means two.\nExport each into its own bundle."
            )
        if snapshot.repo is None or metadata.origin != "direct":
            self.entries[key] = entry
        if metadata.origin == "stored":
            self.versions.setdefault(metadata.name, set()).add(metadata.version)
        if (follows := followed_branch(metadata)) and snapshot.repo:
            self.branches[key] = follows if found.revision is None else found.revision
        self.models[key] = (
            snapshot,
            replace(LockedModel.from_snapshot(snapshot), approval=approved.approval if approved else None),
        )

    def find_aliases(self, catalog: Catalog) -> list[Alias]:
        """Return the aliases that point to the stored versions."""
        return [
            alias
            for name, versions in sorted(self.versions.items())
            for alias in catalog.stored.aliases(name)
            if alias.version in versions
        ]


def _as_it_travels(metadata: ModelMetadata, snapshot: Snapshot) -> ModelMetadata:
    """Return an entry as a bundle has it: without a folder's path, which exists on this machine only."""
    if snapshot.repo is None:
        metadata = metadata.with_facts(model_path=None)
        if metadata.origin == "direct":
            metadata = metadata.with_attributes(name=valid_name(snapshot.path.name))
    return metadata.with_attributes(origin="stored") if metadata.origin == "process" else metadata


def _check_target(target: Path, *, replace: bool, key: Path | None) -> None:
    """Check that a bundle can be written and signed.

    Raises:
        OutputError: It cannot be written, or exists and `replace` is not set.
        RequestError: The key cannot sign it.
    """
    if key is not None:
        if str(target) == "-" or (os.path.exists(target) and not os.path.isfile(target)):
            raise RequestError(f"Only a file can be signed, not '{target}'.\nName a file: -o bundle.tar")
        signing.check_signing_key(key)
    if not replace and str(target) != "-" and os.path.isfile(target):
        raise OutputError(f"'{target}' exists already.\nTo overwrite it: --replace", path=str(target))
    destination.check_output(target)

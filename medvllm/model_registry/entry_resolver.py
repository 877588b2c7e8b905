"""What a name means: an entry and its verified files. Importing this imports no torch."""

import logging
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from medvllm import settings, sources
from medvllm.catalog import Catalog, find_model
from medvllm.metadata import ModelMetadata
from medvllm.model_registry.snapshots import Snapshots
from medvllm.names import ModelRef

logger = logging.getLogger(__name__)


class Basis(NamedTuple):
    """What the meaning of a call rests on, besides its files and the environment."""

    settings_files: int
    lock_file: Path  # also of the working directory, where the settings name no file
    catalog: tuple[int, Hashable]


@dataclass(frozen=True)
class FoundEntry:
    """An entry that a name means.

    Attributes:
        metadata: The entry, without the facts that its files say.
        revision: The revision that the name has, if any.
        basis: The state of the settings and the catalogue before the name was looked up.
        lock: The stamps of the lock file at that time.
    """

    metadata: ModelMetadata
    revision: str | None
    basis: Basis
    lock: sources.Fingerprint


class Resolved(Protocol):
    """What was found for a name."""

    @property
    def metadata(self) -> ModelMetadata: ...
    @property
    def basis(self) -> Basis: ...


class EntryResolver:
    """Finds the entry for a name and its files, which are fetched if they are not here."""

    def __init__(self, catalog: Catalog, snapshots: Snapshots) -> None:
        self._catalog = catalog
        self._snapshots = snapshots
        self._warned: set[str] = set()  # deprecated entries that the log has named

    def find(self, ref: ModelRef, revision: str | None) -> FoundEntry:
        """Return the entry that a name means.

        Args:
            ref: The name.
            revision: The revision that the call asks for.

        Raises:
            ModelNotFoundError: The name means no model.
        """
        # First the state of catalogue and lock, then the look-up: a change in between outdates what is found.
        basis = self._basis(stored=ref.kind == "name")
        lock = sources.Fingerprint.of([basis.lock_file])
        metadata, revision = find_model(self._catalog, ref, revision)
        metadata = metadata.without_folder_facts()
        self._warn_of_deprecated(metadata)
        return FoundEntry(metadata, revision, basis, lock)

    def fetch(self, metadata: ModelMetadata, revision: str | None) -> sources.Snapshot:
        """Return the verified files of an entry.

        Raises:
            SourceError: The files cannot be had, or are not what they should be.
        """
        snapshot = self._snapshots.get(metadata, revision)
        if metadata.origin == "direct":
            # A folder's path is written on purpose. A repository's id may be a misspelt name.
            level = logging.INFO if snapshot.repo is None else logging.WARNING
            logger.log(level, "%r is not registered: loaded directly, from %s", metadata.name, snapshot.identity)
        return snapshot

    def is_current(self, found: Resolved) -> bool:
        """Return whether the entry and the settings are as they were when it was found."""
        return (
            found.basis == self._basis(stored=found.basis.catalog[1] is not False)
            and (found.metadata.origin != "direct" or settings.ALLOW_UNREGISTERED())
            and (not found.metadata.source.trust_remote_code or settings.TRUST_REMOTE_CODE())
        )

    def _basis(self, *, stored: bool) -> Basis:
        return Basis(settings.read_files(), sources.Lock.current_path(), self._catalog.generation(stored=stored))

    def _warn_of_deprecated(self, metadata: ModelMetadata) -> None:
        """Log once that an entry is deprecated, why, and what to use instead."""
        lifecycle = metadata.lifecycle
        if (lifecycle.deprecated or lifecycle.successor) and metadata.reference not in self._warned:
            self._warned.add(metadata.reference)
            why = f": {lifecycle.deprecated}" if lifecycle.deprecated else ""
            instead = f". Use {lifecycle.successor!r} instead" if lifecycle.successor else ""
            logger.warning("Model %r is deprecated%s%s", metadata.reference, why, instead)

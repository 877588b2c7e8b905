"""The verified files of what a name means. Importing this imports no torch."""

import os

from medvllm import sources
from medvllm.catalog import Catalog, Found, explain_missing_repository, find_model
from medvllm.errors import HubUnreachableError, ModelNotFoundError
from medvllm.metadata import ModelMetadata
from medvllm.model_registry.protection import check_baseline
from medvllm.names import parse_name


class Snapshots:
    """Finds what a name means and gives its files, fetched if they are not here and checked against the lock."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def find(self, name: "str | os.PathLike[str]", revision: str | None = None) -> Found:
        """Return the entry that a name means, or one for the repository or folder that it names."""
        return find_model(self._catalog, parse_name(name), revision)

    def fetch(
        self, name: "str | os.PathLike[str]", revision: str | None = None
    ) -> tuple[ModelMetadata, sources.Snapshot]:
        """Return the entry that a name means, and its files; `revision` overrides the name's and the entry's."""
        entry, named_revision = self.find(name, revision)
        return entry, self.get(entry, revision or named_revision)

    def refresh(self, name: "str | os.PathLike[str]", revision: str | None = None) -> None:
        """Ask the Hub which commit the branch or tag of a name has today, and keep the answer."""
        sources.refresh_revision(self.find(name, revision).entry, revision)

    def get(self, metadata: ModelMetadata, revision: str | None) -> sources.Snapshot:
        """Return an entry's files, checked against the lock and, for a protected version, against its baseline."""
        try:
            snapshot = sources.resolve_snapshot(
                metadata, revision, locked=sources.Lock.current().get_approved(metadata)
            )
        except (ModelNotFoundError, HubUnreachableError) as error:
            if metadata.origin == "direct" and metadata.location.startswith("hf://"):
                raise explain_missing_repository(self._catalog, metadata.name, error) from error.__cause__
            raise
        if metadata.origin == "stored" and (alias := self._catalog.stored.protected_by(metadata)) is not None:
            check_baseline(
                metadata, alias, None if revision is not None else sources.LockedModel.from_snapshot(snapshot).digest
            )
        return snapshot

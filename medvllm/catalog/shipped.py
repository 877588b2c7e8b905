"""Entries that are installed together with a program or a package: they do not change while a process runs."""

from collections.abc import Callable

from medvllm.catalog.packages import Shipment
from medvllm.errors import CatalogError
from medvllm.forking import Lock
from medvllm.lazy import lazy
from medvllm.metadata import ModelMetadata


class ShippedEntries:
    """Entries by name, read when the first one is asked for. A process can hide an entry from itself."""

    def __init__(self, read: Callable[[], Shipment], on_change: Callable[[], None]) -> None:
        self._read = read
        self._on_change = on_change
        self._lock = Lock()  # guards _hidden
        self._hidden: set[str] = set()

    @lazy
    def _content(self) -> Shipment:
        return self._read()

    @lazy
    def _owners(self) -> dict[str, str]:
        return {other: entry.name for entry in self._content.entries.values() for other in entry.source.also_known_as}

    def get(self, name: str) -> ModelMetadata | None:
        """Return the entry of that name, or None."""
        return None if name in self._hidden else self._content.entries.get(name)

    def check_usable(self, name: str) -> None:
        """Raise CatalogError if a name belongs to a package whose entries cannot be used."""
        why = self._content.broken.get(name)
        if why is not None:
            raise CatalogError(why, model=name)

    def owner(self, other: str) -> str | None:
        """Return the name of the entry that is also known as `other`, or None."""
        return self._owners.get(other)

    def newest(self, name: str) -> int:
        """Return the version of a name, hidden or not, or 0."""
        entry = self._content.entries.get(name)
        return 0 if entry is None else entry.version

    def all(self) -> list[ModelMetadata]:
        """Return every entry that is not hidden."""
        with self._lock:
            hidden = set(self._hidden)
        return [entry for name, entry in self._content.entries.items() if name not in hidden]

    def hide(self, name: str) -> bool:
        """Hide an entry from this process, and return whether there was one to hide."""
        with self._lock:
            if name in self._hidden or name not in self._content.entries:
                return False
            self._hidden.add(name)
            self._on_change()
            return True

    def is_hidden(self, name: str) -> bool:
        """Return whether this process has hidden the entry of that name."""
        return name in self._hidden

    def find_repository(self, repo: str) -> ModelMetadata | None:
        """Return the entry that describes a repository of the Hub, or None.

        Built-in entries also list the earlier names of their repositories. The other names in a package may be those
        of other repositories, which ``hf://`` must not replace.
        """

        def describes(entry: ModelMetadata) -> bool:
            others = entry.source.also_known_as if entry.origin == "built-in" else ()
            return repo in (entry.location.removeprefix("hf://"), *others)

        return next((entry for entry in self.all() if describes(entry)), None)

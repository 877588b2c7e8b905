"""The entries that this process has registered for itself."""

from collections.abc import Callable

from medvllm.catalog.announcements import Meaning
from medvllm.catalog.taken import name_taken
from medvllm.errors import ModelExistsError
from medvllm.forking import Lock
from medvllm.metadata import ModelMetadata


class ProcessEntries:
    """This process's entries by name. Each registration of a name gets the next version number.

    Every method may be called from any thread.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change  # called after every change, with the lock held
        # Guards everything below. Reading one key needs no lock. Nobody waits for a database while holding it.
        self._lock = Lock()
        self._entries: dict[str, ModelMetadata] = {}
        self._owners: dict[str, str] = {}  # other name -> name
        self._digests: dict[str, str] = {}  # of the entries, by name
        self._versions: dict[str, int] = {}  # the highest version ever given to a name; no number is given twice
        self._adopted: dict[str, ModelMetadata] = {}  # the entries that another process has sent
        self._removed: set[str] = set()  # names that were unregistered

    def get(self, name: str) -> ModelMetadata | None:
        """Return the entry of that name, or None."""
        return self._entries.get(name)

    def find(self, name: str) -> ModelMetadata | None:
        """Return the entry of that name, or the one that is also known by it, or None."""
        return self._entries.get(name) or self._entries.get(self._owners.get(name, ""))

    def owner(self, other: str) -> str | None:
        """Return the name of the entry that is also known as `other`, or None."""
        return self._owners.get(other)

    def all(self) -> list[ModelMetadata]:
        """Return every entry."""
        with self._lock:
            return list(self._entries.values())

    def names(self) -> list[str]:
        """Return the name of every entry."""
        with self._lock:
            return list(self._entries)

    def was_removed(self, name: str) -> bool:
        """Return whether a name, or another name of an entry, was registered here and then unregistered."""
        return name in self._removed

    def meanings(self) -> dict[str, Meaning]:
        """Return what each name and other name means here, without the entries that another process has sent."""
        with self._lock:
            own = {
                name: Meaning(entry.version, self._digests[name])
                for name, entry in self._entries.items()
                if entry is not self._adopted.get(name)
            }
            others = {other: own[name] for other, name in self._owners.items() if name in own}
            return others | own

    def add(self, entry: ModelMetadata, newest: int, *, replace: bool) -> ModelMetadata:
        """Add an entry as the next version of its name and return it.

        Args:
            entry: The entry. Its own version number does not count.
            newest: The highest version number that the name has outside this process.
            replace: Whether the entry may take the place of one of this process.

        Raises:
            ModelExistsError: The process has an entry of that name, and `replace` is not set.
        """
        with self._lock:
            if not replace and (known := self._entries.get(entry.name)) is not None:
                raise name_taken(known.name, known.origin, known.version)
            return self._put(entry, newest)

    def adopt(self, entry: ModelMetadata, newest: int) -> None:
        """Add an entry that another process has sent, in place of what was sent before.

        Raises:
            ModelExistsError: This process has itself registered the name for something else.
        """
        with self._lock:
            known = self._entries.get(entry.name)
            if known is not None and known is not self._adopted.get(entry.name):
                raise ModelExistsError(
                    f"Model {entry.name!r} was sent to this process, but the process has registered that name for "
                    "another model.\nUse a different name for one of them.",
                    model=entry.name,
                )
            self._adopted[entry.name] = self._put(entry, newest)

    def unregister(self, name: str) -> bool:
        """Remove an entry because the caller no longer wants it, and return whether there was one."""
        with self._lock:
            entry = self._entries.pop(name, None)
            if entry is None:
                return False
            self._removed.update((name, *entry.source.also_known_as))
            self._forget(name)
            return True

    def discard(self, name: str) -> None:
        """Remove an entry, if there is one, because an entry of another origin takes its place."""
        with self._lock:
            if self._entries.pop(name, None) is not None:
                self._forget(name)

    def _put(self, entry: ModelMetadata, newest: int) -> ModelMetadata:
        name = entry.name
        entry = entry.with_attributes(version=max(newest, self._versions.get(name, 0)) + 1)
        self._versions[name] = entry.version
        self._drop_owner(name)
        self._entries[name], self._digests[name] = entry, entry.digest
        self._owners |= dict.fromkeys(entry.source.also_known_as, name)
        self._on_change()
        return entry

    def _forget(self, name: str) -> None:
        self._drop_owner(name)
        self._on_change()

    def _drop_owner(self, name: str) -> None:
        # Replaced, never edited: readers hold no lock.
        self._owners = {other: owner for other, owner in self._owners.items() if owner != name}

"""The entries a process can see, in the order in which they are looked up."""

import threading
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import count
from typing import Any, Protocol

from medvllm.catalog.builtin import builtin_entries
from medvllm.errors import CatalogError, ModelExistsError, ModelNotFoundError, nearest, offer
from medvllm.facts import pattern
from medvllm.metadata import ModelMetadata, ModelType
from medvllm.names import valid_name


class Store(Protocol):
    """Entries that outlive the process. `revision` changes whenever an entry does, in any process."""

    def entries(self) -> Mapping[str, ModelMetadata]: ...
    def add(self, metadata: ModelMetadata, *, replace: bool) -> ModelMetadata: ...
    def remove(self, name: str) -> None: ...
    def revision(self) -> int: ...


class Catalog:
    """This process's registrations, then the stored entries, then the built-ins: the first that knows a name wins."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._lock = threading.Lock()  # guards everything below; held for look-ups, never for I/O of a load
        self._own: dict[str, ModelMetadata] = {}
        self._own_aliases: dict[str, str] = {}  # other names of this process's entries
        self._versions: dict[str, int] = {}  # the newest version ever given to a name: never given again
        self._hidden: set[str] = set()  # built-ins that were unregistered
        self._changes = count(1)
        self._generation = 0

    @cached_property
    def _builtins(self) -> dict[str, ModelMetadata]:
        return builtin_entries()

    @cached_property
    def _builtin_aliases(self) -> dict[str, str]:
        return {alias: name for name, metadata in self._builtins.items() for alias in metadata.source.aliases}

    def generation(self) -> tuple[int, int]:
        """Return a value that changes whenever an entry does, so that look-ups can be remembered."""
        return self._generation, self._store.revision() if self._store else 0

    def add(
        self,
        name: str,
        model_type: ModelType | str,
        facts: Mapping[str, Any],
        *,
        replace: bool = False,
        persist: bool = False,
    ) -> ModelMetadata:
        """Add an entry and return it. ModelExistsError: the name is taken and `replace` is not set."""
        valid_name(name)
        entry = ModelMetadata.build(name, model_type, facts)  # checked before anything changes
        for alias in entry.source.aliases:
            valid_name(alias)
        if persist:
            return self._stored().add(entry, replace=replace)
        with self._lock:
            taken = self._find(name)
            if taken is not None and not replace:
                raise ModelExistsError(
                    f"Model {name!r} is registered already ({taken.origin}, version {taken.version}).\n"
                    "Take another name, or say that this one takes its place: register(…, replace=True)",
                    model=name,
                )
            return self._put(entry)

    def keep(self, entry: ModelMetadata) -> ModelMetadata:
        """Put an entry in place of the one of its name, and return it.

        One of this process's stays in it, others are stored: a built-in one as a copy that stands before it.
        """
        if entry.origin != "process":
            return self._stored().add(entry, replace=True)
        with self._lock:
            return self._put(entry)

    def remove(self, name: str) -> None:
        """Remove an entry: this process's, else the stored one, else hide the built-in. ModelNotFoundError: none."""
        found = True
        with self._lock:
            if name in self._own:
                del self._own[name]
                self._forget_aliases(name)
            elif self._store is not None and name in self._store.entries():
                self._store.remove(name)
            elif name in self._builtins and name not in self._hidden:
                self._hidden.add(name)
            else:
                found = False
            if found:
                self._changed()
        if not found:
            raise self.not_found(name)

    def find(self, name: str) -> ModelMetadata | None:
        """Return the entry of that name or alias, or None."""
        with self._lock:
            return (
                self._find(name)
                or self._find(self._own_aliases.get(name, ""))
                or self._find(self._builtin_aliases.get(name, ""))
            )

    def find_source(self, repo: str) -> ModelMetadata | None:
        """Return the built-in entry that describes a repository, or None: ``hf://`` skips what was registered."""
        with self._lock:
            found = (
                entry
                for name, entry in self._builtins.items()
                if name not in self._hidden and repo in (entry.location, *entry.source.aliases)
            )
            return next(found, None)

    def select(
        self,
        model_type: ModelType | str | None = None,
        *,
        task: str | None = None,
        tags: Sequence[str] = (),
        match: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, ModelMetadata]:
        """Return the entries that fit every filter given; `match` and `facts` are globs, in any case."""
        kind = None if model_type is None else ModelType.of(model_type)
        named = None if match is None else match.casefold()
        globs = {fact: pattern(fact, value) for fact, value in (facts or {}).items()}
        with self._lock:
            entries = self._entries()
        if kind is None and task is None and not tags and named is None and not globs:
            return entries
        return {
            name: metadata
            for name, metadata in entries.items()
            if (kind is None or metadata.model_type is kind)
            and (named is None or fnmatchcase(name.casefold(), named))
            and metadata.matches(task, tags, globs)
        }

    def near(self, name: str) -> list[str]:
        """Return at most three names that `name` is likely a misspelling of."""
        with self._lock:
            entries = self._entries()
        return nearest(name, entries, 3)

    def not_found(
        self, name: str, why: str = "", *, advice: str = "", near: list[str] | None = None
    ) -> ModelNotFoundError:
        """Return the error for a name that no entry answers to; `near` is what `near()` gave, when it was asked."""
        near = self.near(name.partition("@")[0]) if near is None else near
        return ModelNotFoundError(
            f"Model {name!r} is not registered{why}.{offer(near)}\nList them with: medvllm list{advice}",
            model=name,
            candidates=tuple(near),
        )

    def _put(self, entry: ModelMetadata) -> ModelMetadata:
        """Make an entry this process's, as the next version of its name."""
        taken = self._find(entry.name)
        newest = max(self._versions.get(entry.name, 0), taken.version if taken else 0)
        entry = entry.changed(version=newest + 1)
        self._versions[entry.name] = entry.version
        self._forget_aliases(entry.name)
        self._own[entry.name] = entry
        self._own_aliases |= dict.fromkeys(entry.source.aliases, entry.name)
        self._changed()
        return entry

    def _stored(self) -> Store:
        if self._store is None:
            raise CatalogError("The entry cannot be kept: this registry has no stored catalogue.")
        return self._store

    def _find(self, name: str) -> ModelMetadata | None:
        if name in self._own:
            return self._own[name]
        if self._store is not None and (stored := self._store.entries().get(name)) is not None:
            return stored
        return None if name in self._hidden else self._builtins.get(name)

    def _entries(self) -> dict[str, ModelMetadata]:
        shown = {name: entry for name, entry in self._builtins.items() if name not in self._hidden}
        stored = self._store.entries() if self._store is not None else {}
        return {**shown, **stored, **self._own}

    def _forget_aliases(self, name: str) -> None:
        self._own_aliases = {alias: owner for alias, owner in self._own_aliases.items() if owner != name}

    def _changed(self) -> None:
        self._generation = next(self._changes)

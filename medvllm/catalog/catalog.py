"""The entries a process can see, in the order in which they are looked up."""

import heapq
import logging
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from itertools import chain, count, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from medvllm.catalog.announcements import Meaning
from medvllm.catalog.builtin import builtin_entries
from medvllm.catalog.stored import StoredCatalog, StoredRow
from medvllm.errors import CatalogError, MedVLLMError, ModelExistsError, ModelNotFoundError, RequestError
from medvllm.fact_filters import check_glob, to_glob
from medvllm.forking import Lock
from medvllm.lazy import lazy
from medvllm.metadata import ModelMetadata, ModelType, fits, mentions
from medvllm.names import valid_name
from medvllm.near_names import did_you_mean, near_names
from medvllm.processes import RecordStore
from medvllm.spelling import folded
from medvllm.words import TASKS, unknown_task, usual_task

logger = logging.getLogger(__name__)
_NAME: Callable[[ModelMetadata | StoredRow], str] = attrgetter("name")


class Catalog:
    """This process's registrations, then the stored entries, then the built-ins: the first that knows a name wins."""

    def __init__(self, stored: StoredCatalog | None = None) -> None:
        self._stored = stored
        # Guards everything below, but for reading one key, which is whole; never held while a database is asked.
        self._lock = Lock()
        self._own: dict[str, ModelMetadata] = {}
        self._own_aliases: dict[str, str] = {}  # other names of this process's entries
        self._digests: dict[str, str] = {}  # of this process's entries, by name
        self._versions: dict[str, int] = {}  # the newest version ever given to a name: never given again
        self._adopted: dict[str, ModelMetadata] = {}  # entries that another process has sent
        self._hidden: set[str] = set()  # built-ins that were unregistered
        self._gone: set[str] = set()  # names that were this process's, and unregistered
        self._changes = count(1)
        self._generation = 0

    @lazy
    def _builtins(self) -> Mapping[str, ModelMetadata]:
        return builtin_entries()

    @lazy
    def _builtin_aliases(self) -> dict[str, str]:
        return {alias: name for name, metadata in self._builtins.items() for alias in metadata.source.also_known_as}

    def record_store(self) -> RecordStore | None:
        """Return where processes that share the stored entries note what they hold; None: there are none."""
        return None if self._stored is None else self._stored.record_store()

    @property
    def stored(self) -> StoredCatalog:
        """The entries that last. CatalogError: there are none to this catalogue."""
        if self._stored is None:
            raise CatalogError("The entry cannot be kept: this registry has no stored catalogue.")
        return self._stored

    @property
    def lasts(self) -> bool:
        """Whether there are entries that last."""
        return self._stored is not None

    def generation(self, *, stored: bool = True) -> tuple[int, Hashable]:
        """Return a value that changes whenever an entry does, so that look-ups can be remembered.

        Without `stored`, for those in which the stored entries have no part: no database is asked.
        """
        return self._generation, self._stored.revision() if stored and self._stored else None if stored else False

    def add(
        self,
        name: str,
        model_type: ModelType | str,
        facts: Mapping[str, Any],
        *,
        replace: bool = False,
        persist: bool = False,
        reason: str | None = None,
    ) -> ModelMetadata:
        """Add an entry and return it. ModelExistsError: the name is taken and `replace` is not set."""
        name = valid_name(folded(name) if isinstance(name, str) else name)
        entry = ModelMetadata.build(name, model_type, facts)  # checked before anything changes
        for alias in entry.source.also_known_as:
            valid_name(alias)
        taken = self._find(name)
        if taken is not None and not replace:
            raise self._exists(taken)
        if persist:
            return self._keep(entry, replace=replace, reason=reason)
        newest = self._newest(name)
        with self._lock:
            if name in self._own and not replace:
                raise self._exists(self._own[name])
            return self._put(entry, newest)

    def keep(self, entry: ModelMetadata) -> ModelMetadata:
        """Put an entry in place of the one of its name, and return it.

        One of this process's stays in it, others are stored: a built-in one as a copy that stands before it.
        """
        if entry.origin != "process":
            return self._keep(entry, replace=True)
        newest = self._newest(entry.name)
        with self._lock:
            return self._put(entry, newest)

    def note_locked(
        self, models: Sequence[tuple[ModelMetadata, Mapping[str, Any]]], lock: Path, reason: str | None
    ) -> None:
        """Add to the history which models were approved in a lock, where it can be written: the lock stands anyway."""
        if self._stored is None or not models:
            return
        numbered = ("stored", "built-in")
        rows = (
            (m.name, m.version if m.origin in numbered else None, {**facts, "lock": str(lock)}) for m, facts in models
        )
        try:
            self._stored.note_locked(rows, reason=reason)
        except MedVLLMError as error:
            logger.warning("the history does not have what was approved in %s: %s", lock, error)

    def own(self, name: str) -> ModelMetadata | None:
        """Return what this process has registered under a name, or another name for it, for itself alone."""
        return self._own.get(name) or self._own.get(self._own_aliases.get(name, ""))

    def own_meanings(self) -> dict[str, Meaning]:
        """Return what names mean in this process alone, but for what another one has sent."""
        with self._lock:
            own = {
                name: Meaning(entry.version, self._digests[name])
                for name, entry in self._own.items()
                if entry is not self._adopted.get(name)
            }
            others = {alias: own[name] for alias, name in self._own_aliases.items() if name in own}
            return others | own

    def adopt(self, entry: ModelMetadata) -> None:
        """Make an entry that another process has for itself alone this one's too.

        ModelExistsError: this process has registered the name for something else. What it was sent before gives way.
        """
        if (known := self._own.get(entry.name)) is not None and known.facts() == entry.facts():
            return
        newest = self._newest(entry.name)
        with self._lock:
            known = self._own.get(entry.name)
            if known is not None and known is not self._adopted.get(entry.name):
                raise ModelExistsError(
                    f"Model {entry.name!r} was sent to this process, which has registered that name for something "
                    "else.\nGive one of them another name.",
                    model=entry.name,
                )
            self._adopted[entry.name] = self._put(entry, newest)

    def remove(self, name: str, *, force: bool = False, reason: str | None = None) -> None:
        """Remove an entry: this process's, else the stored one with all versions, else hide the built-in.

        ModelNotFoundError: there is none. CatalogError: the stored one is in use, and `force` is not set.
        """
        with self._lock:
            own = self._own.pop(name, None)
            if own is not None:
                self._gone.update((name, *own.source.also_known_as))
                self._forget_aliases(name)
                self._changed()
        if own is not None:
            return
        if self._stored is not None and self._stored.find(name) is not None:
            self._stored.remove(name, force=force, reason=reason)
            return
        with self._lock:
            hidden = name in self._builtins and name not in self._hidden
            if hidden:
                self._hidden.add(name)
                self._changed()
        if not hidden:
            raise self.not_found(name)

    def find(self, name: str, suffix: str | None = None) -> ModelMetadata | None:
        """Return the entry of that name, or of another name for it, or None; `suffix` is a version or an alias."""
        owners = (self._find(owner, suffix) for owner in self._owners(name))
        return self._find(name, suffix) or next((entry for entry in owners if entry is not None), None)

    def known(self, name: str) -> list[str]:
        """Return the versions and aliases that may follow a name."""
        stored = self._stored
        names = {name, *self._owners(name)}
        own = {entry.version for of in names for entry in self._unstored(of)}
        versions = sorted(own.union(*(stored.versions(of) for of in names) if stored else ()))
        aliases = [alias for of in sorted(names) for alias in (stored.aliases(of) if stored else ())]
        return [*map(str, versions), *(alias.alias for alias in aliases if alias.version is not None)]

    def was_removed(self, name: str) -> Literal["stored", "process", None]:
        """Return where a name was registered that was unregistered since: nobody means a repository by it."""
        if name in self._gone or name in self._hidden:
            return "process"
        return "stored" if self._stored is not None and self._stored.was_removed(name) else None

    def is_stored(self, name: str) -> bool:
        """Return whether a name means a stored entry, and not one of this process."""
        found = self._find(name)
        return found is not None and found.origin == "stored"

    def find_source(self, repo: str) -> ModelMetadata | None:
        """Return the built-in entry that describes a repository, or None: ``hf://`` skips what was registered."""
        with self._lock:
            found = (
                entry
                for name, entry in self._builtins.items()
                if name not in self._hidden and repo in (entry.location, *entry.source.also_known_as)
            )
            return next(found, None)

    def select(
        self,
        model_type: ModelType | str | None = None,
        *,
        task: str | None = None,
        tags: Sequence[str] = (),
        match: str | None = None,
        search: str | None = None,
        facts: Mapping[str, Any] | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> dict[str, ModelMetadata]:
        """Return the entries that fit every filter given, by name; `match` and `facts` are globs, in any case.

        `search` is a text that a name, another name or the description has.
        """
        kind = None if model_type is None else ModelType.of(model_type)
        _check_filters(task=task, search=search, after=after)
        tags = _tags(tags)
        asked, task = task, task if task is None else usual_task(task)
        globs = {fact: to_glob(fact, value) for fact, value in (facts or {}).items()}
        fitting = self._candidates(after)
        if match is not None:
            is_named = re.compile(translate(check_glob("match", match).casefold())).match
            fitting = (entry for entry in fitting if is_named(entry.name.casefold()))
        if search is not None:
            text = search.casefold()
            fitting = (entry for entry in fitting if mentions(entry.fact, text))
        if kind is not None:
            fitting = (entry for entry in fitting if entry.model_type == kind)
        if task is not None or tags or globs:
            fitting = (entry for entry in fitting if fits(entry.fact, task, tags, globs))
        chosen = islice(fitting, limit)
        found = {entry.name: entry.metadata() if isinstance(entry, StoredRow) else entry for entry in chosen}
        if not found and asked is not None and task not in TASKS:
            self._check_task(asked)
        return found

    def _check_task(self, asked: str) -> None:
        """Raise RequestError unless some entry is for a task that is none of ours."""
        known = {str(entry.fact("task")) for entry in self._candidates(None) if entry.fact("task")}
        if asked not in known:
            raise unknown_task(asked, known)

    def near(self, name: str) -> list[str]:
        """Return at most three names that `name` is likely a misspelling of."""
        with self._lock:
            names = {*self._own, *(name for name in self._builtins if name not in self._hidden)}
        return near_names(name, names.union(self._stored.names() if self._stored else ()), 3)

    def not_found(
        self,
        name: str,
        why: str = "",
        *,
        what: str = "is not registered",
        advice: str = "",
        near: list[str] | None = None,
    ) -> ModelNotFoundError:
        """Return the error for a name that no entry answers to; `near` is what `near()` gave, when it was asked."""
        near = self.near(name.partition("@")[0]) if near is None else near
        return ModelNotFoundError(
            f"Model {name!r} {what}{why}.{did_you_mean(near)}\nList them with: medvllm list{advice}",
            model=name,
            candidates=tuple(near),
        )

    def _builtin(self, name: str) -> ModelMetadata | None:
        """Return the built-in entry of that name, or None."""
        return None if name in self._hidden else self._builtins.get(name)

    def _keep(self, entry: ModelMetadata, *, replace: bool, reason: str | None = None) -> ModelMetadata:
        """Store an entry; its numbers go on from those of the built-in one."""
        before = self._builtins.get(entry.name)
        kept = self.stored.add(entry, replace=replace, above=before.version if before else 0, reason=reason)
        self.give_way(entry.name)
        return kept

    def give_way(self, name: str) -> None:
        """Forget this process's entry of a name, which would stand before the stored one."""
        with self._lock:
            if self._own.pop(name, None) is not None:
                self._forget_aliases(name)
                self._changed()

    def outdate(self) -> None:
        """Have every name looked up anew: it may mean something else, though no entry has changed."""
        with self._lock:
            self._changed()

    def _put(self, entry: ModelMetadata, newest: int) -> ModelMetadata:
        """Make an entry this process's, as the next version of its name."""
        entry = entry.changed(version=max(newest, self._versions.get(entry.name, 0)) + 1)
        self._versions[entry.name] = entry.version
        self._forget_aliases(entry.name)
        self._own[entry.name], self._digests[entry.name] = entry, entry.digest
        self._own_aliases |= dict.fromkeys(entry.source.also_known_as, entry.name)
        self._changed()
        return entry

    def _newest(self, name: str) -> int:
        """Return the highest number that a version of a name has outside this process, 0 for none."""
        stored = self._stored.versions(name) if self._stored else {}
        return max([*stored, *(entry.version for entry in self._unstored(name))], default=0)

    def _find(self, name: str, suffix: str | None = None) -> ModelMetadata | None:
        unstored = [entry for entry in self._unstored(name) if suffix in (None, str(entry.version))]
        if unstored and unstored[0].origin == "process":
            return unstored[0]
        stored = self._stored.find(name, suffix) if self._stored is not None else None
        return stored or next(iter(unstored), None)

    def _unstored(self, name: str) -> list[ModelMetadata]:
        """Return this process's entry of that name, and the built-in one."""
        return [entry for entry in (self._own.get(name), self._builtin(name)) if entry is not None]

    def _owners(self, other: str) -> Iterator[str]:
        """Give the names of the entries that are known by another name too."""
        if (own := self._own_aliases.get(other)) is not None:
            yield own
        if self._stored is not None and (stored := self._stored.find_other(other)) is not None:
            yield stored.name
        if (builtin := self._builtin_aliases.get(other)) is not None:
            yield builtin

    def _candidates(self, after: str | None) -> Iterator[ModelMetadata | StoredRow]:
        """Give what each name means, sorted by name."""
        with self._lock:
            own = list(self._own.values())
            builtins = [entry for name, entry in self._builtins.items() if name not in self._hidden]
        stored = self._stored.rows(after) if self._stored is not None else iter(())
        first = next(stored, None)
        if first is None:
            meant = {entry.name: entry for entry in (*builtins, *own) if after is None or entry.name > after}
            yield from sorted(meant.values(), key=_NAME)
            return
        layers: tuple[Iterable[ModelMetadata | StoredRow], ...] = (
            sorted(own, key=_NAME),  # the first wins a tie
            chain((first,), stored),
            sorted(builtins, key=_NAME),
        )
        last = after or ""
        for candidate in heapq.merge(*layers, key=_NAME):
            if candidate.name > last:
                yield candidate
                last = candidate.name

    def _forget_aliases(self, name: str) -> None:
        self._own_aliases = {alias: owner for alias, owner in self._own_aliases.items() if owner != name}

    def _changed(self) -> None:
        self._generation = next(self._changes)

    @staticmethod
    def _exists(taken: ModelMetadata) -> ModelExistsError:
        return ModelExistsError(
            f"Model {taken.name!r} is registered already ({taken.origin}, version {taken.version}).\n"
            "Take another name, or say that this one takes its place: --replace, register(…, replace=True)",
            model=taken.name,
        )


def _check_filters(**texts: object) -> None:
    """Raise RequestError for a filter that is no text."""
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise RequestError(f"Filter {name!r} must be text, not {type(value).__name__}.", option=name)


def _tags(tags: object) -> tuple[str, ...]:
    """Return the tags to look for, of one or several; RequestError: they are none."""
    wanted = (tags,) if isinstance(tags, str) else tags
    if not isinstance(wanted, list | tuple | set | frozenset) or not all(isinstance(tag, str) for tag in wanted):
        raise RequestError("Filter 'tags' must be text or a list of texts.", option="tags")
    return tuple(wanted)

"""The entries that a process can see, in the order in which they are looked up."""

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from medvllm.catalog.announcements import Meaning
from medvllm.catalog.builtin import builtin_entries
from medvllm.catalog.local_names import LocalNames
from medvllm.catalog.packages import Shipment, package_entries
from medvllm.catalog.process_entries import ProcessEntries
from medvllm.catalog.record import StoredRow, package_detail
from medvllm.catalog.selection import Candidate, Selection, check_text
from medvllm.catalog.shipped import ShippedEntries
from medvllm.catalog.stored import StoredCatalog
from medvllm.catalog.taken import name_taken, other_name_taken
from medvllm.errors import CatalogError, MedVLLMError, ModelNotFoundError
from medvllm.local_files import local_files
from medvllm.metadata import ModelMetadata
from medvllm.model_type import ModelType
from medvllm.names import valid_name
from medvllm.near_names import did_you_mean, near_names
from medvllm.own_changes import own_changes
from medvllm.spelling import normalize_text
from medvllm.word_patterns import check_word_pattern
from medvllm.words import TASKS, unknown_task

if TYPE_CHECKING:
    from medvllm.processes import RecordStore

_NAME: Callable[[Candidate], str] = attrgetter("name")


class _InOrder(NamedTuple):
    """The entries that are not stored, sorted by name."""

    generation: int  # of the catalogue, when they were these
    own: list[ModelMetadata]
    shipped: list[list[ModelMetadata]]
    unstored: list[ModelMetadata]  # what each name means without stored entries


class Catalog:
    """The entries of this process, the stored ones, those of installed packages, and the built-in ones.

    They are looked up in this order: the first that has a name wins.
    """

    def __init__(self, stored: StoredCatalog | None = None) -> None:
        self._stored = stored
        self._changes = count(1)
        self._generation = 0
        self._sorted: _InOrder | None = None
        self._own = ProcessEntries(self._count_change)
        self._local_names = LocalNames()
        self._shipped = (  # in the order in which they are looked up
            ShippedEntries(package_entries, self._count_change),
            ShippedEntries(lambda: Shipment(builtin_entries(), {}), self._count_change),
        )

    @property
    def stored(self) -> StoredCatalog:
        """The entries that outlive the process.

        Raises:
            CatalogError: This catalogue was made without them.
        """
        if self._stored is None:
            raise CatalogError("The entry cannot be stored: this registry has no stored catalogue.")
        return self._stored

    @property
    def has_stored(self) -> bool:
        """Whether there is a stored catalogue."""
        return self._stored is not None

    def record_store(self) -> "RecordStore | None":
        """Return where the processes that share the stored entries record what they hold, or None without any."""
        return None if self._stored is None else self._stored.record_store()

    def generation(self, *, stored: bool = True) -> tuple[int, Hashable]:
        """Return a value that changes whenever an entry does, so that look-ups can be remembered.

        Without `stored`, for look-ups that do not depend on stored entries: then no database is asked.
        """
        token = self._stored.database.change_token() if stored and self._stored else None if stored else False
        return self._generation, token

    def outdate(self) -> None:
        """Let every name be looked up again, because it may mean something else although no entry has changed."""
        self._count_change()

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
        """Add an entry and return it.

        Args:
            facts: The facts, by the keywords of `register`.
            replace: Whether the name may be registered already.
            persist: Whether to store the entry, so that other processes see it too.
            reason: Why; kept in the history of a stored entry.

        Raises:
            ModelExistsError: The name is registered, or one of the entry's names is another name of an entry, and
                `replace` is not set.
            RequestError, ModelNameError: A fact or a name is not valid.
        """
        name = valid_name(normalize_text(name) if isinstance(name, str) else name)
        entry = ModelMetadata.build(name, model_type, facts)  # checked before anything changes
        check_word_pattern(name, entry.behaviour.word_pattern)
        for other in entry.source.also_known_as:
            valid_name(other)
        if not replace:
            self._check_not_another_name(entry)
        if not replace and (taken := next(iter(self._unstored(name)), None)) is not None:
            raise name_taken(name, taken.origin, taken.version)
        if persist:
            return self._store(entry, replace=replace, reason=reason)
        numbers = self._stored.numbers(name) if self._stored else []
        if not replace and numbers:
            raise name_taken(name, "stored", numbers[-1])
        return self._own.add(entry, self._newest(name, numbers), replace=replace)

    def put(self, entry: ModelMetadata) -> ModelMetadata:
        """Put an entry in place of the one of its name, and return it.

        An entry of this process stays in it. Every other one is stored: a built-in one as a copy that is looked up
        before it.
        """
        if entry.origin != "process":
            return self._store(entry, replace=True)
        return self._own.add(entry, self._newest(entry.name), replace=True)

    def adopt(self, entry: ModelMetadata) -> None:
        """Add an entry that another process has for itself alone, in place of what that process sent before.

        Raises:
            ModelExistsError: This process has itself registered the name for something else.
        """
        if (known := self._own.get(entry.name)) is not None and known.facts() == entry.facts():
            return
        self._own.adopt(entry, self._newest(entry.name))

    def remove(self, name: str, *, force: bool = False, reason: str | None = None) -> None:
        """Remove an entry: this process's, or else all stored versions, or else hide a built-in one.

        Args:
            name: The name, without a version.
            force: Remove stored versions although an alias points to one, or a process has one leased.
            reason: Why; kept in the history of a stored entry.

        Raises:
            ModelNotFoundError: There is no such entry.
            CatalogError: A stored version is in use, and `force` is not set.
        """
        if self._own.unregister(name):
            return
        if self._stored is not None and self._stored.find(name) is not None:
            self._stored.remove(name, force=force, reason=reason)
            return
        hidden = [shipped.hide(name) for shipped in self._shipped]
        if not any(hidden):
            raise self.not_found(name)

    def give_way(self, name: str) -> None:
        """Remove this process's entry of a name, which would be found before the stored one."""
        self._own.discard(name)

    def note_locked(
        self, models: Sequence[tuple[ModelMetadata, dict[str, Any]]], lock: Path, reason: str | None
    ) -> None:
        """Add to the history which models were approved in a lock file. A failure is logged: the lock file counts."""
        if self._stored is None or not models:
            return
        where = {"lock": str(lock)}
        rows = (
            (m.name, m.version if m.origin == "stored" or m.is_shipped else None, facts | package_detail(m) | where)
            for m, facts in models
        )
        try:
            self._stored.note_locked(rows, reason=reason)
        except MedVLLMError as error:
            import logging

            logging.getLogger(__name__).warning(
                "The history could not be written: it lacks what was approved in %s: %s", lock, error
            )

    def own(self, name: str) -> ModelMetadata | None:
        """Return what this process has registered for itself under a name, or another name of it, or None."""
        return self._own.find(name)

    def own_meanings(self) -> dict[str, Meaning]:
        """Return what each name means in this process alone, without the entries that another process has sent."""
        return self._own.meanings()

    def find(self, name: str, suffix: str | None = None) -> ModelMetadata | None:
        """Return the entry of that name, or the first that is also known by it, or None.

        `suffix` is the number of a version, or an alias.
        """
        owners = (self._find(owner, suffix) for owner in self._owners(name))
        return self._find(name, suffix) or next((entry for entry in owners if entry is not None), None)

    def known(self, name: str) -> list[str]:
        """Return the versions and aliases that may follow a name."""
        stored = self._stored
        names = {name, *self._owners(name)}
        own = {entry.version for of in names for entry in self._unstored(of)}
        versions = sorted(own.union(*(stored.numbers(of) for of in names) if stored else ()))
        aliases = [alias for of in sorted(names) for alias in (stored.aliases(of) if stored else ())]
        return [*map(str, versions), *(alias.alias for alias in aliases if alias.version is not None)]

    def was_removed(self, name: str) -> Literal["stored", "process", None]:
        """Return where a name was registered before it was unregistered, or None. Nobody means a repository by it."""
        if self._own.was_removed(name) or any(shipped.is_hidden(name) for shipped in self._shipped):
            return "process"
        return "stored" if self._stored is not None and self._stored.was_removed(name) else None

    def is_stored(self, name: str) -> bool:
        """Return whether a name means a stored entry."""
        found = self._find(name)
        return found is not None and found.origin == "stored"

    def find_source(self, repo: str) -> ModelMetadata | None:
        """Return the installed entry that describes a repository, or None: ``hf://`` skips what was registered."""
        found = (shipped.find_repository(repo) for shipped in self._shipped)
        return next((entry for entry in found if entry is not None), None)

    def select(
        self,
        model_type: ModelType | str | None = None,
        *,
        task: str | None = None,
        tags: Sequence[str] | str = (),
        match: str | None = None,
        search: str | None = None,
        facts: Mapping[str, Any] | None = None,
        limit: int | None = None,
        after: str | None = None,
        here: bool = False,
    ) -> dict[str, ModelMetadata]:
        """Return the entries that fit every filter, by name, sorted.

        Args:
            task: A task that the model is ready for.
            tags: Tags that the entry must all have.
            match: A glob for the name, in any case.
            search: Text that a name, another name or the description contains, in any case.
            facts: Globs for facts, in any case. None asks for a fact that is not known.
            limit: The highest number of entries to return.
            after: Only names behind this one.
            here: Only entries whose files are on this machine.

        Raises:
            RequestError: A filter is not valid.
        """
        check_text("after", after)
        selection = Selection.of(model_type, task=task, tags=tags, match=match, search=search, facts=facts)
        if here:
            selection = selection._replace(names=self._local_names.find(self._locations(), self.generation()))
        fitting = selection.filter(self._candidates(after, selection))
        chosen = (entry.metadata() if isinstance(entry, StoredRow) else entry for entry in fitting)
        if here:
            chosen = (entry for entry in chosen if local_files(entry) is not None)
        found = {entry.name: entry for entry in islice(chosen, limit)}
        if not found and task is not None and selection.task not in TASKS:
            self._check_task(task)
        return found

    def near(self, name: str) -> list[str]:
        """Return at most three names that `name` may be a misspelling of."""
        shipped = (entry.name for layer in self._shipped for entry in layer.all())
        return near_names(name, chain(self._own.names(), shipped, self._stored.names() if self._stored else ()), 3)

    def not_found(
        self,
        name: str,
        why: str = "",
        *,
        what: str = "is not registered",
        advice: str = "",
        near: list[str] | None = None,
    ) -> ModelNotFoundError:
        """Return the error for a name that no entry has; `near` is the result of `near()` if the caller has it."""
        near = self.near(name.partition("@")[0]) if near is None else near
        return ModelNotFoundError(
            f"Model {name!r} {what}{why}.{did_you_mean(near)}\nList them with: medvllm list{advice}",
            model=name,
            candidates=tuple(near),
        )

    def _store(self, entry: ModelMetadata, *, replace: bool, reason: str | None = None) -> ModelMetadata:
        """Store an entry. Its versions are numbered after those of an installed entry of the same name."""
        above = max(shipped.newest(entry.name) for shipped in self._shipped)
        kept = self.stored.add(entry, replace=replace, above=above, reason=reason)
        self.give_way(entry.name)
        return kept

    def _newest(self, name: str, stored: Sequence[int] | None = None) -> int:
        """Return the highest number that a version of a name has, 0 for none; `stored` are the numbers, if known."""
        if stored is None:
            stored = self._stored.numbers(name) if self._stored else ()
        return max([*stored, *(entry.version for entry in self._unstored(name))], default=0)

    def _find(self, name: str, suffix: str | None = None) -> ModelMetadata | None:
        own = self._own.get(name)
        if own is not None and suffix in (None, str(own.version)):
            return own
        stored = self._stored.find(name, suffix) if self._stored is not None else None
        if stored is not None:
            return stored
        for shipped in self._shipped:
            shipped.check_usable(name)
            entry = shipped.get(name)
            if entry is not None and suffix in (None, str(entry.version)):
                return entry
        return None

    def _unstored(self, name: str) -> list[ModelMetadata]:
        """Return the entries of that name that are not stored, in the order in which they are looked up."""
        layers = (self._own, *self._shipped)
        return [entry for layer in layers if (entry := layer.get(name)) is not None]

    def _owners(self, other: str) -> Iterator[str]:
        """Iterate over the names of the entries that are also known as `other`, in the order of looking up."""
        if (own := self._own.owner(other)) is not None:
            yield own
        if self._stored is not None and (stored := self._stored.find_other(other)) is not None:
            yield stored.name
        for shipped in self._shipped:
            if (owner := shipped.owner(other)) is not None:
                yield owner

    def _check_not_another_name(self, entry: ModelMetadata) -> None:
        """Raise ModelExistsError if a name of a new entry is another name of an entry: it would answer in its place."""
        for name in (entry.name, *entry.source.also_known_as):
            owners = (self._find(owner) for owner in self._owners(name) if owner != entry.name)
            if (owner := next(filter(None, owners), None)) is not None and self._find(name) is None:
                raise other_name_taken(name, owner.name, owner.origin, owner.version)

    def _candidates(self, after: str | None, selection: Selection | None = None) -> Iterator[Candidate]:
        """Iterate over what each name means, sorted by name; without stored entries that a selection leaves out."""
        kept, names = self._in_order(), selection and selection.names

        def behind(entries: list[ModelMetadata]) -> Iterable[Candidate]:
            found = islice(entries, 0 if after is None else bisect_right(entries, after, key=_NAME), None)
            return found if names is None else (entry for entry in found if entry.name in names)

        # Stored entries that are found before an installed one of the same name.
        hiding = [entry.name for entries in kept.shipped for entry in entries]
        stored = self._stored.rows(after, selection, hiding) if self._stored is not None else iter(())
        first = next(stored, None)
        if first is None:
            yield from behind(kept.unstored)
            return
        layers: tuple[Iterable[Candidate], ...]
        layers = (behind(kept.own), chain((first,), stored), *map(behind, kept.shipped))
        last = after or ""
        import heapq  # here, as a listing without stored entries does without it

        for candidate in heapq.merge(*layers, key=_NAME):  # of equal names, the first layer's comes first
            if candidate.name > last:
                yield candidate
                last = candidate.name

    def _in_order(self) -> "_InOrder":
        """Return the entries that are not stored, sorted. They are kept until one changes: there may be 100,000."""
        kept, generation = self._sorted, self._generation
        if kept is None or kept.generation != generation:
            own, *shipped = (sorted(layer.all(), key=_NAME) for layer in (self._own, *self._shipped))
            meant = {entry.name: entry for entry in chain(*reversed(shipped), own)}  # a later one replaces an earlier
            self._sorted = kept = _InOrder(generation, own, shipped, sorted(meant.values(), key=_NAME))
        return kept

    def _locations(self) -> Iterator[tuple[str, str | None]]:
        """Iterate over the names of all entries, and where each says that its files are."""
        layers = (self._own, *self._shipped)
        yield from ((entry.name, entry.source.model_path) for layer in layers for entry in layer.all())
        if self._stored is not None:
            yield from self._stored.locations()

    def _check_task(self, asked: str) -> None:
        """Raise RequestError unless some entry has this task, which is not one of the known ones."""
        known = {str(entry.fact("task")) for entry in self._candidates(None) if entry.fact("task")}
        if asked not in known:
            raise unknown_task(asked, known)

    def _count_change(self) -> None:
        self._generation = next(self._changes)
        own_changes.note()

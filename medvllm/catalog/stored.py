"""The catalogue that lasts: versions, aliases and history, in a database. Without one, nothing heavy is imported."""

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from itertools import starmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from medvllm import processes, settings
from medvllm.catalog.address import Address
from medvllm.catalog.entries import Entries, parsed, to_toml
from medvllm.catalog.events import HALVES, Alias, Event
from medvllm.catalog.log import Locked, VersionRecord, records
from medvllm.catalog.place import TEXTS, has_content, is_named, is_there, location
from medvllm.errors import CatalogError, MedVLLMError, ModelNameError, RequestError, SettingError
from medvllm.fact_values import check_fact
from medvllm.facts import IDENTIFYING, MUTABLE_FIELDS
from medvllm.lazy import lazy
from medvllm.metadata import ModelMetadata
from medvllm.names import parse, valid_alias, valid_name
from medvllm.spelling import folded

if TYPE_CHECKING:
    from medvllm.catalog.intake import Intake, Wanted
    from medvllm.catalog.sql import SqlStore
    from medvllm.catalog.sql.transaction import Transaction

_MAX_REASON = 2000  # characters
_REMEMBERED = 10_000  # look-ups


class Approval(Protocol):
    """What decides whether a version may be pointed to by a protected alias."""

    def lacking(self, entry: ModelMetadata) -> list[str]: ...

    def unmet(self, entry: ModelMetadata) -> list[str]: ...

    def locked(self, entry: ModelMetadata) -> Locked | None: ...


class StoredCatalog:
    """Entries that outlive the process, in the database that MEDVLLM_CATALOG names, or in one of its own: a file by
    its Path, or a postgresql:// URL.

    A model is given as `name`, `name@3` or `name@production`. Every change is one transaction, and an event of the
    history. CatalogError: the database cannot be read or written, or what is asked for is not allowed.
    """

    def __init__(self, location: Path | str | None = None, *, approval: Approval | None = None) -> None:
        self._location = location
        self.approval = approval
        # A revision, and look-ups with what they gave at it or later: replaced as one, so that it needs no lock.
        self._remembered: tuple[Hashable, dict[Hashable, Any]] = (None, {})

    def __repr__(self) -> str:
        return f"StoredCatalog({self.where!r})"

    @property
    def where(self) -> str:
        """The database's file, or its URL, without the password; the setting as it stands, where it is wrong."""
        try:
            where = self._where()
            return str(where) if isinstance(where, Path) else Address.of(where).shown
        except SettingError as error:
            return str(error.value or settings.CATALOG.name)  # an error of a settings file has no value

    def is_there(self) -> bool:
        """Return whether there is a database to read; a server's may still not answer.

        CatalogError: there is none where one was named, or something else is in its place.
        """
        return self._open() is not None

    def record_store(self) -> processes.RecordStore:
        """Return where processes that share this catalogue note what they hold: beside its file, or in its database."""
        where = self._where()
        if isinstance(where, Path):
            # A link in each of two homes may lead to it; and nothing is made where a share is not mounted.
            home, place = settings.HOME(), Path(os.path.realpath(where))
            is_elsewhere = place.parent != Path(os.path.realpath(home)) and os.path.isfile(place)
            return processes.RecordFolder((place.parent if is_elsewhere else home) / "run", is_shared=is_elsewhere)
        from medvllm.catalog.sql import Processes

        return Processes(_store(where))

    def create(self) -> bool:
        """Make an empty catalogue where there is none, and return whether one was made.

        A file in MEDVLLM_HOME is also made by the first entry that is stored; one that was named is made by this alone.
        """
        return _store(self._where()).create()

    def revision(self) -> Hashable:
        """Return a value that changes with the catalogue, in whichever process; None while there is none."""
        where = self._where()
        store = _stores.get(where)
        if store is None and (not isinstance(where, Path) or has_content(where)):
            store = _store(where)
        number = None if store is None else store.revision()  # None too when the file has gone
        return None if number is None else (where, number)

    def find(self, name: str, suffix: str | None = None) -> ModelMetadata | None:
        """Return what a name means, with a version's number or an alias, or None."""

        def look(store: "SqlStore") -> ModelMetadata | None:
            row = store.find(name, suffix)
            return None if row is None else from_record(name, *row)

        found: ModelMetadata | None = self._recalled((name, suffix), look)
        return found

    def find_other(self, other: str) -> ModelMetadata | None:
        """Return the first entry, by name, whose other names have this one, or None."""
        for name in self._recalled((other,), lambda store: store.owners(other)) or ():
            found = self.find(name)
            if found is not None and other in found.source.also_known_as:
                return found
        return None

    def names(self) -> list[str]:
        """Return the names that have a version, sorted."""
        store = self._open()
        return [] if store is None else store.names()

    def rows(self, after: str | None = None) -> "Iterator[StoredRow]":
        """Give what each name means, sorted by name; only read as far as it is asked for."""
        store = self._open()
        return iter(()) if store is None else starmap(StoredRow, store.rows(after))

    def versions(self, name: str) -> dict[int, ModelMetadata]:
        """Return every stored version of a name by its number, the newest last."""
        store = self._open()
        return (
            {}
            if store is None
            else {number: from_record(of, number, facts) for of, number, facts in store.versions(folded(name))}
        )

    def version_log(self, name: str) -> list[VersionRecord]:
        """Return each stored version of a name, the newest last: when it was made, by whom and why, and its state."""
        name = folded(name)
        store, entries = self._open(), list(self.versions(name).values())
        if store is None or not entries:
            return []
        locked = {entry.version: self.approval.locked(entry) for entry in entries} if self.approval else {}
        meant = self.find(name)
        return records(
            entries,
            store.aliases(name),
            store.events(name, None),
            meant.version if meant else None,
            {number: lock for number, lock in locked.items() if lock is not None},
        )

    def aliases(self, name: str | None = None) -> list[Alias]:
        """Return the aliases of a name, or all, sorted."""
        store = self._open()
        return [] if store is None else store.aliases(None if name is None else folded(name))

    def history(self, name: str | None = None, *, since: date | str | None = None) -> list[Event]:
        """Return the events in their order: of one model, since a moment (a datetime, or a text such as 2026-03-01)."""
        moment = None if since is None else _moment(since)
        store = self._open()
        return [] if store is None else list(store.events(None if name is None else folded(name), moment))

    def check_history(self) -> tuple[int, str, list[str]]:
        """Return how many events there are, the hash of the last, and what is wrong: edited, removed, reordered events,
        and entries or aliases that they do not account for.

        Whoever can write to the database can write all of it anew: keep number and hash elsewhere to notice that.
        """
        store = self._open()
        return (0, "", []) if store is None else store.check()

    def add(self, entry: ModelMetadata, *, replace: bool, above: int = 0, reason: str | None = None) -> ModelMetadata:
        """Store an entry as the next version of its name and return it, or the newest when nothing is new.

        ModelExistsError: the name has a version, and `replace` is not set.
        """
        facts = to_record(entry)
        with self._transaction(reason) as transaction:
            number = transaction.register(entry.name, facts, replace=replace, above=above, reason=reason)
            kept = transaction.facts(entry.name, number)
        return from_record(entry.name, number, kept)

    def mark(self, model: str, *, reason: str | None = None, **marks: Any) -> list[ModelMetadata]:
        """Change what may change in a version, and return it; without a suffix, in all of a name.

        The marks are tags, values, deprecated, successor, acceptance and accepted; None takes one away.
        """
        name, suffix = _split(model)
        for mark, value in marks.items():
            if mark not in MUTABLE_FIELDS:
                raise RequestError(
                    f"Fact {mark!r} of a version cannot be changed.\n"
                    f"Register the next version: medvllm register {name}",
                    keyword=mark,
                )
            if value is not None:
                marks[mark] = check_fact(name, mark, value)[1]
        with self._transaction(reason) as transaction:
            numbers = transaction.some_numbers(name) if suffix is None else [transaction.resolve(name, suffix)]
            for number in numbers:
                transaction.change(name, number, marks, reason=reason)
            return [from_record(name, number, transaction.facts(name, number)) for number in numbers]

    def tag(
        self,
        model: str,
        *,
        add: Mapping[str, str | None],
        remove: tuple[str, ...] = (),
        reason: str | None = None,
    ) -> ModelMetadata:
        """Add tags to the version that a name means, and values to keys, and remove others; return it."""
        name, suffix = _split(model)
        with self._transaction(reason) as transaction:
            number = transaction.resolve(name, suffix)
            facts = transaction.facts(name, number)
            tags, values = [tag for tag in facts.get("tags", []) if tag not in remove], dict(facts.get("values", {}))
            for key in remove:
                values.pop(key, None)
            for key, value in add.items():
                if value is not None:
                    values[key] = value
                elif key not in tags:
                    tags.append(key)
            marks = {"tags": tags, "values": values}
            transaction.change(
                name, number, {mark: check_fact(name, mark, marks[mark])[1] for mark in marks}, reason=reason
            )
            return from_record(name, number, transaction.facts(name, number))

    def remove(self, model: str, *, force: bool = False, reason: str | None = None) -> list[int]:
        """Remove a version, or all of a name, and return their numbers: none is ever given again.

        CatalogError: an alias points to one, or a process on this machine has it leased; `force` removes it all the
        same, and the alias. ModelNotFoundError: there is none.
        """
        name, suffix = _split(model)
        with self._transaction(reason) as transaction:
            numbers = transaction.some_numbers(name) if suffix is None else [transaction.resolve(name, suffix)]
            if not force:
                self._check_idle({(name, number) for number in numbers})
            for number in numbers:
                transaction.unregister(name, number, force=force, reason=reason)
        return numbers

    def set_alias(self, name: str, alias: str, version: int | str, *, reason: str | None = None) -> Alias:
        """Point an alias, such as production, to a version, in one step; `default` is what the bare name means.

        CatalogError: the alias is protected, and the version is not locked, not accepted, or no reason is given.
        """
        name, alias = folded(name), valid_alias(alias)
        protected = any(known.protected for known in self.aliases(name) if known.alias == alias)
        approved = self.find(name, str(version)) if protected else None
        if approved is not None:
            self._approve(name, alias, approved, reason)
            version = approved.version  # wherever another alias points to by now
        with self._transaction(reason) as transaction:
            number = transaction.resolve(name, str(version))
            facts = None if approved is None else approved.facts()
            transaction.set_alias(name, alias, number, approved=facts, reason=reason)
        return Alias(name, alias, number, protected)

    def remove_alias(self, name: str, alias: str, *, reason: str | None = None) -> None:
        """Remove an alias; a protected one asks for a reason, and stays protected."""
        with self._transaction(reason) as transaction:
            transaction.remove_alias(folded(name), alias, reason=reason)

    def protect(self, name: str, alias: str, protected: bool = True, *, reason: str | None = None) -> None:
        """Protect an alias, set or not: it moves only to a version that is locked and accepted, with a reason.

        CatalogError: the version that it points to already lacks something, which is named; or it is no longer to be
        protected, and no reason is given.
        """
        name, alias = folded(name), valid_alias(alias)
        known = [each for each in self.aliases(name) if each.alias == alias and not each.protected]
        entry = self.find(name, alias) if protected and known else None
        lacking = self.approval.lacking(entry) if entry is not None and self.approval is not None else []
        if entry is not None and lacking:
            raise CatalogError(
                f"Alias {alias!r} of model {name!r} cannot be protected: version {entry.version}, to which it points, "
                "lacks:\n  " + "\n  ".join(lacking),
                model=name,
                missing=tuple(lacking),
            )
        with self._transaction(reason) as transaction:
            transaction.protect(name, alias, protected, reason=reason)

    def unmet(self, alias: Alias) -> list[str]:
        """Return for what the version of a protected alias does not load, as `protect` would list it; nothing: it does.

        An alias that points nowhere lacks nothing.
        """
        if not alias.protected or alias.version is None or self.approval is None:
            return []
        entry = self.find(alias.name, str(alias.version))
        return [] if entry is None else self.approval.unmet(entry)

    def protected_by(self, entry: ModelMetadata) -> str | None:
        """Return a protected alias that points to a stored version, or None."""
        states = self._recalled(("aliases", entry.name, ""), lambda store: store.aliases(entry.name)) or ()
        return next((alias.alias for alias in states if alias.protected and alias.version == entry.version), None)

    def was_removed(self, name: str) -> bool:
        """Return whether a name had versions, and all of them were unregistered."""
        return bool(self._recalled(("removed", name, ""), lambda store: store.was_removed(name)))

    def note_load(self, metadata: ModelMetadata, detail: Mapping[str, Any]) -> None:
        """Add to the history that a model was loaded: what exactly, never what it was given."""
        with self._transaction(None) as transaction:
            transaction.note("loaded", metadata.name, metadata.version, detail={"origin": metadata.origin, **detail})

    def note_locked(
        self, models: Iterable[tuple[str, int | None, Mapping[str, Any]]], *, reason: str | None = None
    ) -> None:
        """Add to the history which models were approved in a lock: name, version and what was locked of each."""
        with self._transaction(reason) as transaction:
            for name, version, detail in models:
                transaction.note("locked", name, version, reason=reason, detail=detail)

    def export(self) -> str:
        """Return all entries, versions and aliases as TOML, as `apply` takes it."""
        store = self._open()
        versions, aliases = ([], []) if store is None else store.content()
        there = {name for name, _, _ in versions}  # a protection may outlast its name
        return to_toml(starmap(from_record, versions), [alias for alias in aliases if alias.name in there])

    def apply(self, text: str, *, dry_run: bool = False, reason: str | None = None) -> list[Event]:
        """Make the catalogue what a file says, in one transaction, and return the changes; `dry_run` only tells them.

        Applied again, nothing changes. A name that the file lacks is removed. What would be refused one by one is
        refused here: nothing is changed then.
        """
        from medvllm.catalog.exchange import apply

        if dry_run:
            return self.plan(text, reason=reason)[0]
        wanted = _wanted(text)
        with self._transaction(reason) as transaction:
            moves = apply(transaction, wanted, reason)
            changes = transaction.events
            # What is to be looked at first, of files and processes, is looked at while others may go on.
            transaction.is_kept = not moves and all(event.action != "unregistered" for event in changes)
        if transaction.is_kept:
            return changes
        self._check_idle({(event.name, event.version) for event in changes if event.action == "unregistered"})
        for name, alias, entry in moves:
            self._approve(name, alias, entry, reason)
        approved = {(name, alias, entry.version): entry.facts() for name, alias, entry in moves}
        with self._transaction(reason) as transaction:
            apply(transaction, wanted, reason, approved=approved)
        return transaction.events

    def take(
        self,
        wanted: "Wanted",
        *,
        replace: bool,
        dry_run: bool = False,
        reason: str | None = None,
        noted: Iterable[tuple[str, int | None, Mapping[str, Any]]] = (),
    ) -> "tuple[Intake, list[Event]]":
        """Add what a bundle brings, in one transaction; return what came of it, and the changes.

        Args:
            wanted: Its entries and aliases.
            replace: Whether what is here may be changed.
            dry_run: Whether nothing is kept.
            reason: Why; the history keeps it.
            noted: Models that were imported, with what the history is to say of each: name, version, detail.

        Raises:
            CatalogError: It clashes with what is here, or changes it and may not.
        """
        from medvllm.catalog.intake import take

        for stated in wanted.aliases:
            valid_alias(stated.alias)
        if dry_run and self._open() is None:  # a plan makes no database
            with TemporaryDirectory() as folder, closing(StoredCatalog(Path(folder) / "catalog.db")) as empty:
                empty.create()
                return empty.take(wanted, replace=replace, reason=reason)
        with self._transaction(reason) as transaction:
            transaction.is_kept = not dry_run
            intake = take(transaction, wanted, reason)
            intake.check(replace=replace)
            changes = list(transaction.events)
            for name, version, detail in noted:
                transaction.note("imported", name, version or intake.numbers.get(name), reason=reason, detail=detail)
        return intake, changes

    def position(self) -> tuple[int, str]:
        """Return how many events the history has, and the hash of the last as it was written; 0 without a catalogue."""
        store = self._open()
        return (0, "") if store is None else store.position()

    def plan(self, text: str, *, reason: str | None = None) -> tuple[list[Event], list[str]]:
        """Return what `apply` would change, and what it lacks for that: nothing is changed, whatever is protected."""
        from medvllm.catalog.exchange import apply

        if self._open() is None:  # a plan makes no database
            with TemporaryDirectory() as folder, closing(StoredCatalog(Path(folder) / "catalog.db")) as empty:
                empty.create()
                return empty.plan(text, reason=reason)
        wanted, lacking = _wanted(text), []
        with self._transaction(reason) as transaction:
            transaction.is_plan, transaction.is_kept = True, False
            moves = apply(transaction, wanted, reason)
        for name, alias, entry in moves:
            missing = self._missing(entry)
            lacking += [f"{name}@{alias} -> {entry.version} lacks {each}" for each in missing]
        if not reason and (moves or transaction.needs_reason):
            lacking.append("what is protected changes only with a reason: --reason 'why'")
        try:
            self._check_idle(
                {(event.name, event.version) for event in transaction.events if event.action == "unregistered"}
            )
        except CatalogError as error:
            lacking.append(str(error).splitlines()[0])
        return transaction.events, lacking

    def migrate(self, revision: str | None = None) -> tuple[str | None, Path | None]:
        """Bring the database to this program's schema, or an earlier one; return the one before, and the backup made.

        A SQLite file is migrated without being asked for, when a newer program opens it.
        """
        store = self._make()
        return store.migrate() if revision is None else store.migrate(revision)

    def close(self) -> None:
        """Close the database's connections; what is asked next opens others."""
        if (store := _stores.pop(self._where(), None)) is not None:
            store.close()

    def _where(self) -> Path | str:
        return self._location or location(TEXTS())

    def _open(self) -> "SqlStore | None":
        """Return the database to read from, or None while there is no file, and none was named."""
        where = self._where()
        if isinstance(where, Path) and not is_there(where, named=self._location is not None or is_named()):
            return None
        return _store(where)

    def _make(self) -> "SqlStore":
        """Return the database to write to, which is made where none was named."""
        return self._open() or _store(self._where())

    def _recalled(self, key: Hashable, look: "Callable[[SqlStore], Any]") -> Any:
        """Return what a look-up gives, which is not made again while nothing changes; None while there is no file."""
        revision = self.revision()
        if revision is None:
            store = self._open()
            return None if store is None else look(store)
        remembered_at, remembered = self._remembered
        if revision != remembered_at or len(remembered) >= _REMEMBERED:
            remembered = {}
            self._remembered = revision, remembered
        if key not in remembered:
            remembered[key] = look(_store(self._where()))
        return remembered[key]

    @contextmanager
    def _transaction(self, reason: str | None) -> "Iterator[Transaction]":
        """Give the catalogue for one change."""
        check_reason(reason)
        with self._make().transaction() as transaction:
            yield transaction

    def _missing(self, entry: ModelMetadata) -> list[str]:
        """Return what a version lacks, beside a reason, for a protected alias to point to it."""
        if self.approval is None:
            return ["the check of a registry: registry.catalog"]
        return self.approval.lacking(entry)

    def _approve(self, name: str, alias: str, entry: ModelMetadata, reason: str | None) -> None:
        """Raise CatalogError unless a protected alias may point to a version."""
        missing = [*self._missing(entry), *([] if reason else ["a reason: --reason 'why'"])]
        if missing:
            raise CatalogError(
                f"Alias {alias!r} of model {name!r} is protected, and version {entry.version} lacks:\n  "
                + "\n  ".join(missing),
                model=name,
                missing=tuple(missing),
            )

    def _check_idle(self, versions: "set[tuple[str | None, int | None]]") -> None:
        """Raise CatalogError when a process that shares the catalogue has one of the versions leased."""
        for note in processes.list_processes([self.record_store()]):
            for model in note.models:
                if model["leases"] and model["source"] == "stored" and (model["name"], model["version"]) in versions:
                    raise CatalogError(
                        f"Version {model['version']} of model {model['name']!r} is in use by {note.process}.\n"
                        "See who uses it: medvllm ps; or remove it all the same: medvllm unregister "
                        f"{model['name']}@{model['version']} --force",
                        model=model["name"],
                    )


class StoredRow:
    """What a stored name means: made into metadata only when it is wanted, as a filter may look at 100,000."""

    def __init__(self, name: str, model_type: str, read: Callable[[], tuple[int, dict[str, Any]]]) -> None:
        self.name, self.model_type, self._read = name, model_type, read

    @lazy
    def _content(self) -> tuple[int, dict[str, Any]]:
        return self._read()

    def fact(self, keyword: str) -> object:
        """Return a fact by its keyword; None when it is not known."""
        if keyword == "name":
            return self.name
        if keyword in IDENTIFYING:
            return {"origin": "stored", "version": self._content[0]}[keyword]
        return self._content[1].get(keyword)

    def metadata(self) -> ModelMetadata:
        """Return the entry."""
        return from_record(self.name, *self._content)


def check_reason(reason: str | None) -> None:
    """Raise RequestError when a reason is none that the history can keep."""
    if reason is not None and not 0 < len(reason) <= _MAX_REASON:
        raise RequestError(f"A reason has 1 to {_MAX_REASON:,} characters, not {len(reason):,}.")
    if reason is not None and HALVES.search(reason):
        raise RequestError("A reason holds half a character.")


def to_record(entry: ModelMetadata) -> dict[str, Any]:
    """Return an entry's facts as they are stored.

    ModelNameError: its name, or another name of it, is none. RequestError: no other process could import its class, or
    find its folder.
    """
    for name in (entry.name, *entry.source.also_known_as):
        valid_name(name)
    location = parse(entry.location)
    if location.kind == "folder" and not location.text.startswith(("/", "file://", "home://")):
        raise RequestError(
            f"Folder {location.text[:80]!r} of model {entry.name!r} is another one in another working directory.\n"
            f"Write its whole path: {location.name}",
            model=entry.name,
        )
    for path in entry.class_paths:
        module, _, name = (path or "").partition(":")
        if module == "__main__" or "<locals>" in name:
            raise RequestError(
                f"Class {path!r} of model {entry.name!r} cannot be stored: no other process could import it.\n"
                "Put it at the top level of a module, and give it as 'module:Class'.",
                model=entry.name,
            )
    return entry.facts()


def from_record(name: str, number: int, facts: Mapping[str, Any]) -> ModelMetadata:
    """Return a stored version as metadata; CatalogError: it is not usable."""
    others = {fact: value for fact, value in facts.items() if fact != "model_type"}
    try:
        return ModelMetadata.build(name, facts["model_type"], others, version=number, origin="stored")
    except (MedVLLMError, KeyError) as error:
        raise CatalogError(f"Version {number} of model {name!r} in the catalogue is not usable: {error}") from error


def _wanted(text: str) -> Entries:
    """Return what a file of entries says; ModelNameError: it has an alias that none can be."""
    wanted = parsed(text, "stored")
    for stated in wanted.aliases or ():
        valid_alias(stated.alias)
    return wanted


def _split(model: str) -> tuple[str, str | None]:
    ref = parse(model)
    if ref.kind != "name":
        raise ModelNameError(f"{model!r} is no name of a stored model.\nList them with: medvllm list")
    return ref.name, ref.suffix


def _moment(since: date | str) -> str:
    try:
        moment = datetime.fromisoformat(since if isinstance(since, str) else since.isoformat())
        return moment.astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError):
        raise RequestError(
            f"{str(since)[:40]!r} is neither a day nor a time.\n"
            "Write it as a day or a time: 2026-03-01, 2026-03-01T12:30, 2026-03-01T12:30+01:00"
        ) from None


def _store(where: Path | str) -> "SqlStore":
    from medvllm.catalog.sql import SqlStore

    return _stores.get(where) or _stores.setdefault(where, SqlStore(where))


def close() -> None:
    """Close the databases that this process has opened; what is asked next opens them again."""
    while _stores:
        _stores.popitem()[1].close()


_stores: "dict[Path | str, SqlStore]" = {}  # one for each database that this process has opened

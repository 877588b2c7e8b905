"""The catalogue that outlives a process: entries with versions, aliases and a history, in a database.

It is long because `registry.catalog` offers all of it in one class; each method is short.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvllm.catalog.entries import to_toml
from medvllm.catalog.leased import check_not_leased
from medvllm.catalog.memo import LookupMemo
from medvllm.catalog.protection import Protection, check_move, check_protect, missing_requirements
from medvllm.catalog.record import StoredRow, from_record, package_detail, to_record, with_present_names
from medvllm.catalog.stores import DatabaseHandle
from medvllm.errors import CatalogError, ModelNameError, ModelNotFoundError, RequestError
from medvllm.fact_values import check_fact
from medvllm.facts import MUTABLE_FIELDS
from medvllm.metadata import ModelMetadata
from medvllm.names import parse_name, valid_alias
from medvllm.near_names import did_you_mean, near_names
from medvllm.spelling import normalize_text

if TYPE_CHECKING:
    from datetime import date

    from medvllm.catalog import intake
    from medvllm.catalog.events import Alias, Event
    from medvllm.catalog.keys import StoredKeys
    from medvllm.catalog.log import VersionRecord
    from medvllm.catalog.selection import Selection
    from medvllm.catalog.sql import SqlStore
    from medvllm.processes import RecordStore


class StoredCatalog:
    """Entries that every process can see, in a SQLite file or a PostgreSQL database.

    A model is given as `name`, `name@3` or `name@production`. Every change is one transaction and adds events to the
    history. Every method raises CatalogError if the database cannot be read or written.

    Args:
        location: A SQLite file as a Path, or a postgresql:// URL. None follows MEDVLLM_CATALOG.
        protection: Decides which versions a protected alias may point to.
    """

    def __init__(self, location: Path | str | None = None, *, protection: Protection | None = None) -> None:
        self.database = DatabaseHandle(location)
        self.protection = protection
        self._memo = LookupMemo(self.database)

    def __repr__(self) -> str:
        return f"StoredCatalog({self.where!r})"

    @property
    def where(self) -> str:
        """The database's file, or its URL without the password."""
        return self.database.shown

    def is_there(self) -> bool:
        """Return whether there is a database to read. This does not connect to a server.

        Raises:
            CatalogError: The file that MEDVLLM_CATALOG names does not exist, or is not a file.
        """
        return self.database.reader() is not None

    def create(self) -> bool:
        """Create an empty catalogue if there is none, and return whether one was created.

        The first entry that is stored also creates the default file in MEDVLLM_HOME. A database that MEDVLLM_CATALOG
        names is created only by this method.
        """
        return self.database.create()

    def migrate(self, schema: str | None = None) -> tuple[str | None, Path | None]:
        """Bring the database to this program's schema, or to an earlier one.

        A SQLite file does not need this: a newer program migrates it when it opens it.

        Returns:
            The schema before, None for an empty database; and the backup of a SQLite file, if one was made.
        """
        database = self.database.writer().database
        return database.migrate() if schema is None else database.migrate(schema)

    def close(self) -> None:
        """Close the connections to the database. A later call opens others."""
        self.database.close()

    def find(self, name: str, suffix: str | None = None) -> ModelMetadata | None:
        """Return what a name means, or None. `suffix` is a version's number or an alias."""

        def look(store: "SqlStore") -> ModelMetadata | None:
            row = store.find(name, suffix)
            return None if row is None else from_record(name, *row)

        return self._memo.get((name, suffix), look)

    def find_other(self, other: str) -> ModelMetadata | None:
        """Return the first entry, by name, that is also known as `other`, or None."""
        for name in self._memo.get((other,), lambda store: store.owners(other)) or ():
            found = self.find(name)
            if found is not None and other in found.source.also_known_as:
                return found
        return None

    def names(self) -> list[str]:
        """Return the names that have a version, sorted."""
        store = self.database.reader()
        return [] if store is None else store.names()

    def rows(
        self, after: str | None = None, selection: "Selection | None" = None, always: Collection[str] = ()
    ) -> Iterator[StoredRow]:
        """Iterate over what each name means, sorted by name. Rows are read as far as the caller goes.

        Args:
            after: Only names behind this one.
            selection: Rows that cannot fit it are left out. The others still have to be filtered.
            always: Names that are not left out.
        """
        store = self.database.reader()
        return iter(()) if store is None else starmap(StoredRow, store.rows(after, selection, always))

    def locations(self) -> list[tuple[str, str | None]]:
        """Return the name of each version, and its `model_path`: None if it has none."""
        store = self.database.reader()
        return [] if store is None else store.locations()

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a name's versions, the newest last."""
        store = self.database.reader()
        return [] if store is None else store.numbers(normalize_text(name))

    def versions(self, name: str) -> dict[int, ModelMetadata]:
        """Return every stored version of a name by its number, the newest last."""
        store = self.database.reader()
        rows = [] if store is None else store.versions(normalize_text(name))
        return {number: from_record(of, number, facts) for of, number, facts in rows}

    def version_log(self, name: str) -> "list[VersionRecord]":
        """Return each stored version of a name, the newest last: when it was made, by whom and why, and its state."""
        from medvllm.catalog.log import records

        name = normalize_text(name)
        store, entries = self.database.reader(), list(self.versions(name).values())
        if store is None or not entries:
            return []
        locked = {entry.version: self.protection.get_locked(entry) for entry in entries} if self.protection else {}
        meant = self.find(name)
        return records(
            entries,
            store.aliases(name),
            store.events(name, None),
            meant.version if meant else None,
            {number: lock for number, lock in locked.items() if lock is not None},
        )

    def aliases(self, name: str | None = None) -> "list[Alias]":
        """Return the aliases of a name, or of all names, sorted."""
        store = self.database.reader()
        return [] if store is None else store.aliases(None if name is None else normalize_text(name))

    def was_removed(self, name: str) -> bool:
        """Return whether a name had versions, and all of them were unregistered."""
        return bool(self._memo.get(("removed", name, ""), lambda store: store.was_removed(name)))

    def check_known(self, name: str) -> None:
        """Raise ModelNotFoundError, with similar names, if a name never had a stored version and has no event."""
        name, store = normalize_text(name), self.database.reader()
        known = [] if store is None else store.names_ever()
        if name in known or self.history(name):
            return
        near = near_names(name, known, 3)
        raise ModelNotFoundError(
            f"Model {name!r} is not stored.{did_you_mean(near)}\nList the stored models: medvllm list --mine",
            model=name,
            candidates=tuple(near),
        )

    def protected_by(self, entry: ModelMetadata) -> str | None:
        """Return a protected alias that points to a stored version, or None."""
        states = self._memo.get(("aliases", entry.name, ""), lambda store: store.aliases(entry.name)) or ()
        return next((alias.alias for alias in states if alias.protected and alias.version == entry.version), None)

    def unmet_requirements(self, alias: "Alias") -> list[str]:
        """Return why the version that a protected alias points to would not load; nothing if it would."""
        if not alias.protected or alias.version is None or self.protection is None:
            return []
        entry = self.find(alias.name, str(alias.version))
        return [] if entry is None else self.protection.unmet_requirements(entry)

    def history(self, name: str | None = None, *, since: "date | str | None" = None) -> "list[Event]":
        """Return the events, the first one first.

        Args:
            name: Only events of this name. The name may have been unregistered since.
            since: Only events from this moment on: a date, a datetime, or text such as "2026-03-01".
        """
        moment = None if since is None else _moment(since)
        store = self.database.reader()
        return [] if store is None else list(store.events(None if name is None else normalize_text(name), moment))

    def check_history(self) -> tuple[int, str, list[str]]:
        """Check the whole history, and compare it with the entries and aliases.

        Someone who may write to the database can rewrite all of it consistently. To notice that, keep the number and
        the hash somewhere else and compare them.

        Returns:
            The number of events, the hash over all of them, and what is wrong: edited, removed or reordered events,
            and entries or aliases that no event explains.
        """
        store = self.database.reader()
        return (0, "", []) if store is None else store.check()

    def position(self) -> tuple[int, str]:
        """Return the number of events and the hash of the last one, as the catalogue keeps them; 0 and "" for none."""
        store = self.database.reader()
        return (0, "") if store is None else store.position()

    def add(self, entry: ModelMetadata, *, replace: bool, above: int = 0, reason: str | None = None) -> ModelMetadata:
        """Store an entry as the next version of its name and return it.

        If the newest version has the same content, no version is added, and that one is returned.

        Args:
            entry: The entry. Its own version number does not count.
            replace: Whether the name may have a version already.
            above: The new version's number is higher than this.
            reason: Why; kept in the history.

        Raises:
            ModelExistsError: The name has a version, and `replace` is not set.
        """
        facts = to_record(entry)
        with self.database.begin(reason) as transaction:
            number = transaction.register(entry.name, facts, replace=replace, above=above, reason=reason)
            return from_record(entry.name, number, transaction.facts(entry.name, number))

    def update(self, model: str, *, reason: str | None = None, **facts: Any) -> list[ModelMetadata]:
        """Change facts of a version, or of all versions of a name, and return these versions.

        Args:
            model: A name, or a name with a version or an alias.
            reason: Why; kept in the history.
            facts: tags, values, deprecated, successor, baseline, baseline_digest. None takes a fact away.

        Raises:
            RequestError: Another fact was given: those never change in a version.
            ModelNotFoundError: There is no such version.
        """
        name, suffix = _split(model)
        for fact, value in facts.items():
            if fact not in MUTABLE_FIELDS:
                raise RequestError(
                    f"Fact {fact!r} of a version cannot be changed.\nRegister a new version: medvllm register {name}",
                    keyword=fact,
                )
            if value is not None:
                facts[fact] = check_fact(name, fact, value)[1]
        with self.database.begin(reason) as transaction:
            numbers = transaction.resolve_all(name, suffix)
            for number in numbers:
                transaction.change(name, number, facts, reason=reason)
            return [from_record(name, number, transaction.facts(name, number)) for number in numbers]

    def tag(
        self,
        model: str,
        *,
        add: Mapping[str, str | None],
        remove: tuple[str, ...] = (),
        reason: str | None = None,
    ) -> ModelMetadata:
        """Change the tags and values of one version, and return it.

        Args:
            model: A name, or a name with a version or an alias.
            add: Tags to add, each with None, and keys to set, each with its value.
            remove: Tags and keys to remove. One that is not there is ignored.
            reason: Why; kept in the history.

        Raises:
            ModelNotFoundError: There is no such version.
        """
        name, suffix = _split(model)
        with self.database.begin(reason) as transaction:
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
            changed = {"tags": check_fact(name, "tags", tags)[1], "values": check_fact(name, "values", values)[1]}
            transaction.change(name, number, changed, reason=reason)
            return from_record(name, number, transaction.facts(name, number))

    def remove(self, model: str, *, force: bool = False, reason: str | None = None) -> list[int]:
        """Remove a version, or all versions of a name, and return their numbers. No number is given again.

        Args:
            model: A name, or a name with a version or an alias.
            force: Remove a version, and its aliases, although an alias points to it or a process has it leased.
            reason: Why; kept in the history.

        Raises:
            ModelNotFoundError: There is no such version.
            CatalogError: An alias points to a version, or a process has it leased, and `force` is not set.
        """
        name, suffix = _split(model)
        with self.database.begin(reason) as transaction:
            numbers = transaction.resolve_all(name, suffix)
            if not force:
                check_not_leased(self.database.record_store(), {(name, number) for number in numbers})
            for number in numbers:
                transaction.unregister(name, number, force=force, reason=reason)
        return numbers

    def set_alias(self, name: str, alias: str, version: int | str, *, reason: str | None = None) -> "Alias":
        """Point an alias to a version in one step, and return the alias.

        Args:
            name: The name, without a version.
            alias: The alias, such as "production". "default" sets the version that the bare name means.
            version: The number of the version, or another alias that points to it.
            reason: Why; kept in the history. A protected alias requires one.

        Raises:
            ModelNotFoundError: There is no such version.
            CatalogError: The alias is protected, and the version is not locked, has no baseline of the locked files,
                or no reason was given.
        """
        from medvllm.catalog.events import Alias

        name, alias = normalize_text(name), valid_alias(alias)
        protected = any(known.protected for known in self.aliases(name) if known.alias == alias)
        approved = self.find(name, str(version)) if protected else None
        if approved is not None:
            check_move(self.protection, name, alias, approved, reason)
            version = approved.version  # wherever another alias points to by now
        with self.database.begin(reason) as transaction:
            number = transaction.resolve(name, str(version))
            facts = None if approved is None else approved.facts()
            transaction.set_alias(name, alias, number, approved=facts, reason=reason)
        return Alias(name, alias, number, protected)

    def remove_alias(self, name: str, alias: str, *, reason: str | None = None) -> None:
        """Remove an alias. A protected one requires a reason and stays protected.

        Raises:
            ModelNotFoundError: The name has no such alias.
        """
        with self.database.begin(reason) as transaction:
            transaction.remove_alias(normalize_text(name), alias, reason=reason)

    def protect(self, name: str, alias: str, protected: bool = True, *, reason: str | None = None) -> None:
        """Protect an alias, or end its protection. The alias need not be set yet.

        A protected alias can only point to a version that is locked and has a baseline, and moves only with a reason.

        Raises:
            CatalogError: The version that the alias points to lacks something, or protection ends without a reason.
        """
        name, alias = normalize_text(name), valid_alias(alias)
        is_set = any(known.alias == alias and not known.protected for known in self.aliases(name))
        entry = self.find(name, alias) if protected and is_set else None
        if entry is not None:
            check_protect(self.protection, name, alias, entry)
        with self.database.begin(reason) as transaction:
            transaction.protect(name, alias, protected, reason=reason)

    def note_load(self, metadata: ModelMetadata, detail: Mapping[str, Any]) -> None:
        """Add to the history that a model was loaded: which one exactly, never its inputs."""
        with self.database.begin(None) as transaction:
            transaction.note(
                "loaded",
                metadata.name,
                metadata.version,
                detail={"origin": metadata.origin, **package_detail(metadata), **detail},
            )

    def note_locked(
        self, models: Iterable[tuple[str, int | None, Mapping[str, Any]]], *, reason: str | None = None
    ) -> None:
        """Add to the history that models were approved in a lock file: name, version and what was locked of each."""
        with self.database.begin(reason) as transaction:
            for name, version, detail in models:
                transaction.note("locked", name, version, reason=reason, detail=detail)

    def export(self) -> str:
        """Return all entries, versions and aliases as TOML, in the form that `apply` takes.

        Facts that an earlier development version stored under other names get their present names.
        """
        store = self.database.reader()
        versions, aliases = ([], []) if store is None else store.content()
        names = {name for name, _, _ in versions}  # a protected alias may outlast the versions of its name
        entries = (from_record(name, number, with_present_names(facts)) for name, number, facts in versions)
        return to_toml(entries, [alias for alias in aliases if alias.name in names])

    def apply(self, text: str, *, reason: str | None = None, file: str = "The entries") -> "list[Event]":
        """Make the catalogue equal to a file, in one transaction, and return the changes.

        Names that the file does not have are removed. Applied again, the file changes nothing. A change that would be
        refused alone is refused here too, and then nothing changes.

        Args:
            text: The file as TOML, as `export` returns it.
            reason: Why; kept in the history.
            file: What to call the file in messages.

        Raises:
            CatalogError: The file is not valid, or a change is not allowed.
        """
        from medvllm.catalog import exchange

        wanted = exchange.read_entries(text, file)
        with self.database.begin(reason) as transaction:
            moves = exchange.apply(transaction, wanted, reason)
            changes = transaction.events
            # Checking files and processes takes time: then this transaction is undone, so that others can go on.
            transaction.is_kept = not moves and not exchange.removed_versions(changes)
        if transaction.is_kept:
            return changes
        check_not_leased(self.database.record_store(), exchange.removed_versions(changes))
        for name, alias, entry in moves:
            check_move(self.protection, name, alias, entry, reason)
        approved = {(name, alias, entry.version): entry.facts() for name, alias, entry in moves}
        with self.database.begin(reason) as transaction:
            exchange.apply(transaction, wanted, reason, approved=approved)
        return transaction.events

    def plan(
        self, text: str, *, reason: str | None = None, file: str = "The entries"
    ) -> "tuple[list[Event], list[str]]":
        """Return what `apply` would change, and why it would be refused. Nothing changes.

        Args:
            text: The file as TOML, as `export` returns it.
            reason: The reason that would be given.
            file: What to call the file in messages.

        Returns:
            The changes, and the reasons against them; none if `apply` would make them.

        Raises:
            CatalogError: The file is not valid, or a change is impossible.
        """
        from medvllm.catalog import exchange

        wanted = exchange.read_entries(text, file)
        with self.database.begin_trial(reason) as transaction:
            transaction.is_plan = True
            moves = exchange.apply(transaction, wanted, reason)
        obstacles = [
            f"{name}@{alias} -> {entry.version} lacks {each}"
            for name, alias, entry in moves
            for each in missing_requirements(self.protection, entry)
        ]
        if not reason and (moves or transaction.needs_reason):
            obstacles.append("changing a protected alias requires a reason: --reason 'why'")
        try:
            check_not_leased(self.database.record_store(), exchange.removed_versions(transaction.events))
        except CatalogError as error:
            obstacles.append(str(error).splitlines()[0])
        return transaction.events, obstacles

    def add_bundle(
        self,
        wanted: "intake.Wanted",
        *,
        replace: bool,
        dry_run: bool = False,
        reason: str | None = None,
        noted: Iterable[tuple[str, int | None, Mapping[str, Any]]] = (),
    ) -> "tuple[intake.Intake, list[Event]]":
        """Add the entries and aliases of a bundle in one transaction.

        Args:
            wanted: What the bundle has.
            replace: Whether entries and aliases of this catalogue may change.
            dry_run: Whether to undo everything at the end.
            reason: Why; kept in the history.
            noted: What the history shall say of each imported model: name, version, detail.

        Returns:
            What became of the entries, and the changes.

        Raises:
            CatalogError: The bundle clashes with the catalogue, or would change it and `replace` is not set.
        """
        from medvllm.catalog import intake

        for stated in wanted.aliases:
            valid_alias(stated.alias)
        begin = self.database.begin_trial if dry_run else self.database.begin
        with begin(reason) as transaction:
            result = intake.add(transaction, wanted, reason)
            result.check(replace=replace)
            changes = list(transaction.events)
            for name, version, detail in noted:
                transaction.note("imported", name, version or result.numbers.get(name), reason=reason, detail=detail)
        return result, changes

    @property
    def keys(self) -> "StoredKeys":
        """The API keys of the servers that use this catalogue."""
        from medvllm.catalog.keys import StoredKeys

        return StoredKeys(self.database)

    def record_store(self) -> "RecordStore":
        """Return where the processes that share this catalogue record which models they hold."""
        return self.database.record_store()


def _split(model: str) -> tuple[str, str | None]:
    ref = parse_name(model)
    if ref.kind != "name":
        raise ModelNameError(
            f"{model!r} is not the name of a stored model.\nList the stored models: medvllm list --mine"
        )
    return ref.name, ref.suffix


def _moment(since: "date | str") -> str:
    from datetime import UTC, datetime  # here, as a listing does without it

    try:
        moment = datetime.fromisoformat(since if isinstance(since, str) else since.isoformat())
        return moment.astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError):
        raise RequestError(
            f"{str(since)[:40]!r} is not a date or a time.\n"
            "Write a date or a time: 2026-03-01, 2026-03-01T12:30, 2026-03-01T12:30+01:00"
        ) from None

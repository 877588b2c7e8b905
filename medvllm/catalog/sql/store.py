"""Reads entries, versions and aliases from a database, and begins transactions."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvllm.catalog.events import Alias, Event
from medvllm.catalog.selection import Selection
from medvllm.catalog.sql import lookups, recorded_events
from medvllm.catalog.sql.conditions import Conditions
from medvllm.catalog.sql.database import Database
from medvllm.catalog.sql.lookups import VersionRow
from medvllm.catalog.sql.sqlite import SqliteFile

if TYPE_CHECKING:
    from medvllm.catalog.sql.transaction import Transaction


class SqlStore:
    """Reads and changes the stored catalogue of one database.

    Args:
        location: A SQLite file, or a postgresql:// URL.
    """

    def __init__(self, location: Path | str) -> None:
        self.database: Database[Any] = SqliteFile(location) if isinstance(location, Path) else _server(location)

    @contextmanager
    def transaction(self) -> "Iterator[Transaction]":
        """Give a transaction. It is rolled back after an error, or if `is_kept` is not set at its end."""
        from medvllm.catalog.sql.history import Journal
        from medvllm.catalog.sql.transaction import Transaction

        with self.database.writing() as connection:
            journal = Journal(connection)
            transaction = Transaction(journal)
            yield transaction
            if transaction.is_kept:
                journal.write()
            else:
                connection.rollback()

    def find(self, name: str, suffix: str | None = None) -> tuple[int, dict[str, Any]] | None:
        """Return number and facts of the version that a name means, alone or with a number or an alias, or None."""
        row = self.database.look_up(lambda reader: lookups.find_version(reader, name, suffix))
        return None if row is None else (row.number, row.facts())

    def owners(self, other: str) -> list[str]:
        """Return the names of the entries of which a version is also known as `other`."""
        return self.database.look_up(lambda reader: lookups.list_owners(reader, other))

    def names(self) -> list[str]:
        """Return the names that have a version, sorted."""
        return self.database.look_up(lookups.list_names)

    def names_ever(self) -> list[str]:
        """Return the names that have or had a version, sorted."""
        return self.database.look_up(lambda reader: lookups.list_names(reader, ever=True))

    def was_removed(self, name: str) -> bool:
        """Return whether a name had versions and has none now."""
        return self.database.look_up(lambda reader: lookups.was_removed(reader, name))

    def rows(
        self, after: str | None, selection: Selection | None, always: Collection[str]
    ) -> Iterator[tuple[str, str, Callable[[], tuple[int, dict[str, Any]]]]]:
        """Iterate over what each name means, sorted: the name, the type, and a function that reads number and facts.

        Args:
            after: Only names behind this one.
            selection: Rows that cannot fit it are left out.
            always: Names that are not left out.
        """
        with self.database.looking() as reader:
            conditions = selection and Conditions(selection, always, is_sqlite=reader.is_sqlite)
            for row in lookups.stream_meant(reader, after, conditions):
                yield row.name, row.model_type, row.content

    def locations(self) -> list[tuple[str, str | None]]:
        """Return the name of each version, and its `model_path`: None if it has none."""
        return self.database.look_up(lookups.list_locations)

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a name's versions, sorted."""
        return self.database.look_up(lambda reader: lookups.list_numbers(reader, name))

    def versions(self, name: str) -> list[tuple[str, int, dict[str, Any]]]:
        """Return every version of a name, sorted."""
        return _with_facts(self.database.look_up(lambda reader: lookups.list_versions(reader, name)))

    def content(self) -> tuple[list[tuple[str, int, dict[str, Any]]], list[Alias]]:
        """Return every version and every alias, read in one transaction."""
        rows, aliases = self.database.look_up(
            lambda reader: (lookups.list_versions(reader, None), lookups.list_aliases(reader, None))
        )
        return _with_facts(rows), aliases

    def aliases(self, name: str | None = None) -> list[Alias]:
        """Return the aliases of a name, or of all names, sorted."""
        return self.database.look_up(lambda reader: lookups.list_aliases(reader, name))

    def events(self, name: str | None, since: str | None) -> Iterator[Event]:
        """Iterate over the events in their order."""
        with self.database.looking() as reader:
            yield from recorded_events.events(reader, name, since)

    def position(self) -> tuple[int, str]:
        """Return the number of events and the hash of the last one, as the catalogue keeps them."""
        from medvllm.catalog.sql.history import end_of

        return self.database.read(end_of)

    def check(self) -> tuple[int, str, list[str]]:
        """Check the history: return the number of events, a hash over all of them, and what is wrong."""
        from medvllm.catalog.sql.check import check

        found = self.database.read(check)
        return found.length, found.hash, found.flaws


def _server(url: str) -> Database[Any]:
    from medvllm.catalog.sql.postgresql import PostgresServer

    return PostgresServer(url)


def _with_facts(rows: list[VersionRow]) -> list[tuple[str, int, dict[str, Any]]]:
    return [(row.name, row.number, row.facts()) for row in rows]

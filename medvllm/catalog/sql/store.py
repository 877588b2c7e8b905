"""Reads entries, versions and aliases from a database, and begins transactions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Row, and_, bindparam, select

from medvllm.catalog.events import Alias, Event
from medvllm.catalog.sql import history
from medvllm.catalog.sql.check import check
from medvllm.catalog.sql.database import Database
from medvllm.catalog.sql.history import Journal
from medvllm.catalog.sql.postgresql import PostgresServer
from medvllm.catalog.sql.rows import facts_of, list_aliases, list_names, number_of
from medvllm.catalog.sql.sqlite import SqliteFile
from medvllm.catalog.sql.tables import aliases, names, other_names, versions
from medvllm.catalog.sql.transaction import Transaction

# What a name means: alone, with a number, or with an alias. Made once: making a query takes longer than running it.
_NAMED = select(versions).where(versions.c.name == bindparam("name"))
_MEANT = and_(names.c.name == versions.c.name, names.c.current == versions.c.number)
_CURRENT = _NAMED.join(names, _MEANT)
_NUMBERED = _NAMED.where(versions.c.number == bindparam("number"))
_POINTED_TO = _NAMED.join(
    aliases, and_(aliases.c.name == versions.c.name, aliases.c.number == versions.c.number)
).where(aliases.c.alias == bindparam("alias"))


class SqlStore:
    """Reads and changes the stored catalogue of one database.

    Args:
        location: A SQLite file, or a postgresql:// URL.
    """

    def __init__(self, location: Path | str) -> None:
        self.database: Database = SqliteFile(location) if isinstance(location, Path) else PostgresServer(location)

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Give a transaction. It is rolled back after an error, or if `is_kept` is not set at its end."""
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
        number = None if suffix is None else number_of(suffix)
        query = _CURRENT if suffix is None else _POINTED_TO if number is None else _NUMBERED
        wanted = {"name": name, "number": number, "alias": suffix}
        row = self.database.read(lambda connection: connection.execute(query, wanted).one_or_none())
        return None if row is None else (row.number, facts_of(row))

    def owners(self, other: str) -> list[str]:
        """Return the names of the entries of which a version is also known as `other`."""
        query = select(other_names.c.name).where(other_names.c.other == other).distinct().order_by(other_names.c.name)
        return self.database.read(lambda connection: list(connection.execute(query).scalars()))

    def names(self) -> list[str]:
        """Return the names that have a version, sorted."""
        return self.database.read(list_names)

    def names_ever(self) -> list[str]:
        """Return the names that have or had a version, sorted."""
        query = select(names.c.name).order_by(names.c.name)
        return self.database.read(lambda connection: list(connection.execute(query).scalars()))

    def was_removed(self, name: str) -> bool:
        """Return whether a name had versions and has none now."""
        query = select(names.c.newest).where(names.c.name == name, names.c.current.is_(None))
        return self.database.read(lambda connection: connection.execute(query).scalar()) is not None

    def rows(self, after: str | None) -> Iterator[tuple[str, str, Callable[[], tuple[int, dict[str, Any]]]]]:
        """Iterate over what each name means, sorted: the name, the type, and a function that reads number and facts."""
        query = select(versions).join(names, _MEANT).order_by(versions.c.name)
        if after is not None:
            query = query.where(versions.c.name > after)
        query = query.execution_options(stream_results=True, max_row_buffer=500)
        with (
            self.database.reading() as connection,
            connection.execute(query) as found,
        ):  # closed even if the caller stops early
            for row in found:
                yield row.name, row.model_type, partial(_content, row)

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a name's versions, sorted."""
        query = select(versions.c.number).where(versions.c.name == name).order_by(versions.c.number)
        return self.database.read(lambda connection: list(connection.execute(query).scalars()))

    def versions(self, name: str) -> list[tuple[str, int, dict[str, Any]]]:
        """Return every version of a name, sorted."""
        query = select(versions).where(versions.c.name == name).order_by(versions.c.number)
        found = self.database.read(lambda connection: connection.execute(query).all())
        return [(row.name, row.number, facts_of(row)) for row in found]

    def content(self) -> tuple[list[tuple[str, int, dict[str, Any]]], list[Alias]]:
        """Return every version and every alias, read in one transaction."""
        rows, found = self.database.read(
            lambda connection: (connection.execute(select(versions)).all(), list_aliases(connection, None))
        )
        return [(row.name, row.number, facts_of(row)) for row in rows], found

    def aliases(self, name: str | None = None) -> list[Alias]:
        """Return the aliases of a name, or of all names, sorted."""
        return self.database.read(lambda connection: list_aliases(connection, name))

    def events(self, name: str | None, since: str | None) -> Iterator[Event]:
        """Iterate over the events in their order."""
        with self.database.reading() as connection:
            yield from history.events(connection, name, since)

    def position(self) -> tuple[int, str]:
        """Return the number of events and the hash of the last one, as the catalogue keeps them."""
        return self.database.read(history.end_of)

    def check(self) -> tuple[int, str, list[str]]:
        """Check the history: return the number of events, a hash over all of them, and what is wrong."""
        found = self.database.read(check)
        return found.length, found.hash, found.flaws


def _content(row: Row[Any]) -> tuple[int, dict[str, Any]]:
    return row.number, facts_of(row)

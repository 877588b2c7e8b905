"""Runs queries that are written once for both databases: on a SQLite connection of Python, or through SQLAlchemy."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection, TextClause

Values = Mapping[str, Any]
_NONE: Values = MappingProxyType({})


class Reader(Protocol):
    """Reads from one database. Queries name their values as ``:name``.

    Attributes:
        is_sqlite: Whether the database is SQLite; else it is PostgreSQL.
    """

    is_sqlite: bool

    def read(self, query: str, values: Values = _NONE) -> list[Any]:
        """Return all rows."""
        ...

    def stream(self, query: str, values: Values = _NONE) -> Iterator[Any]:
        """Iterate over the rows. They are read as far as the caller goes."""
        ...


class FileReader:
    """Reads from a SQLite file, without SQLAlchemy."""

    is_sqlite = True

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def read(self, query: str, values: Values = _NONE) -> list[Any]:
        return self._connection.execute(query, dict(values)).fetchall()

    def stream(self, query: str, values: Values = _NONE) -> Iterator[Any]:
        with closing(self._connection.execute(query, dict(values))) as rows:
            yield from rows


class ConnectionReader:
    """Reads through a connection of SQLAlchemy, and in its transaction."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.is_sqlite = connection.dialect.name == "sqlite"

    def read(self, query: str, values: Values = _NONE) -> list[Any]:
        return [tuple(row) for row in self._connection.execute(_prepared(query), dict(values))]

    def stream(self, query: str, values: Values = _NONE) -> Iterator[Any]:
        options = {"stream_results": True, "max_row_buffer": 500}
        with self._connection.execute(_prepared(query), dict(values), execution_options=options) as rows:
            yield from map(tuple, rows)


@lru_cache(1000)
def _prepared(query: str) -> "TextClause":
    from sqlalchemy import text

    return text(query)

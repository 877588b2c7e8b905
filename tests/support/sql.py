"""The tables of a catalogue as any client of the database sees and changes them."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg

Row = dict[str, Any]


@contextmanager
def _connected(url: str) -> Iterator[Any]:
    """Give a connection; what was done is kept at the end."""
    if url.startswith("postgresql"):
        with psycopg.connect(url) as server:
            yield server
    else:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=15)) as file, file:
            yield file


def change(url: str, *changes: str | tuple[str, Row]) -> None:
    """Run statements, or add rows to tables, in one transaction."""
    mark = "%s" if url.startswith("postgresql") else "?"
    with _connected(url) as connection:
        for changed in changes:
            if isinstance(changed, str):
                connection.execute(changed)
            else:
                table, row = changed
                connection.execute(f"INSERT INTO {table} VALUES ({', '.join([mark] * len(row))})", [*row.values()])


def rows(url: str, table: str, order: str) -> list[Row]:
    """Return all rows of a table by their columns."""
    with _connected(url) as connection:
        cursor = connection.execute(f"SELECT * FROM {table} ORDER BY {order}")
        return [dict(zip((column[0] for column in cursor.description), row, strict=True)) for row in cursor]

"""The open connections to one database."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from medvllm.lazy import lazy

if TYPE_CHECKING:
    from sqlalchemy import Engine

_MAX_IDLE = 5  # connections to a file; opening one takes a tenth of a millisecond


class Connections:
    """The connections of SQLAlchemy, which is imported when the first one is asked for."""

    def __init__(self, make_engine: "Callable[[], Engine]") -> None:
        self._make_engine = make_engine

    @lazy
    def engine(self) -> "Engine":
        """The engine of SQLAlchemy."""
        return self._make_engine()

    def close(self) -> None:
        """Close those that nobody uses."""
        if "engine" in vars(self):
            self.engine.dispose()


class FileConnections(Connections):
    """The connections to a SQLite file: those of SQLAlchemy, and plain ones for look-ups."""

    def __init__(self, make_engine: "Callable[[], Engine]", open_file: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(make_engine)
        self._open = open_file
        self._idle: list[sqlite3.Connection] = []  # taken and given back in one step each, so no lock is needed

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a plain connection in a transaction that sees one moment of the file."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._open()
        try:
            connection.execute("BEGIN")
            yield connection
        except GeneratorExit:  # the caller reads no further
            self._keep(connection)
            raise
        except BaseException:
            connection.close()  # whatever state it is in
            raise
        self._keep(connection)

    def close(self) -> None:
        super().close()
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()

    def _keep(self, connection: sqlite3.Connection) -> None:
        connection.rollback()
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(connection)
        else:
            connection.close()

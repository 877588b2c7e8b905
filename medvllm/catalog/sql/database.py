"""What a database of either kind does: transactions, the schema, and errors in one form."""

import logging
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from medvllm.catalog.sql import schema
from medvllm.catalog.sql.history import Journal
from medvllm.errors import CatalogError, MedVLLMError
from medvllm.forking import Forked, register

T = TypeVar("T")

logger = logging.getLogger(__name__)

WAIT_S = 15  # for another process's turn


class Database(Forked, ABC):
    """A catalogue's database. Threads may share it, and forks."""

    def __init__(self, where: str) -> None:
        self.where = where  # as it may be shown
        self._lock = threading.Lock()  # guards all below
        self._connected: tuple[Engine, Hashable] | None = None  # to what has the schema of this program
        self._watch: Any = None  # a connection of its own, to ask whether something has changed
        register(self)

    @abstractmethod
    def change_token(self) -> Hashable:
        """Return a value that changes with the catalogue, in whichever process."""

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection that sees one moment of the catalogue; CatalogError: it cannot be read."""
        with self._translated("read"), self._engine().connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a connection for one change: all of it is kept, or nothing. Processes take turns."""
        with self._translated("written"):
            self._prepare()
        with self._translated("written"), self._transaction(self._engine()) as connection:
            yield connection

    @contextmanager
    def noting(self) -> Iterator[Connection]:
        """Give a connection for what is no part of the catalogue: nobody's turn is waited for."""
        with self._translated("written"), self._engine().begin() as connection:
            yield connection

    def migrate(self, revision: str = schema.HEAD) -> tuple[str | None, Path | None]:
        """Bring the database to a schema; return the one it had, and the backup that was made of a file."""
        schema.check_known(revision)
        backup = None
        with self._translated("written"):
            self._prepare()
        with self._translated("migrated"), self._connect() as engine, self._transaction(engine) as connection:
            before = schema.version(connection, self.where)
            if before != revision:
                if before is not None:
                    schema.check_kept(connection, before, revision)
                    backup = self._back_up(before)
                schema.migrate(connection, before, revision)
                if before is not None or revision == schema.HEAD:
                    journal = Journal(connection)
                    journal.note("migrated" if before else "created", detail={"from": before, "to": revision})
                    journal.close()
        self.close()  # the next one looks which schema there is
        return before, backup

    def create(self) -> bool:
        """Make an empty catalogue where there is none, and return whether one was made."""
        with self._translated("written"):
            self._prepare()
        with self._translated("read"), self._connect() as engine, engine.connect() as connection:
            found = schema.version(connection, self.where)
        if found is None:
            return self.migrate()[0] is None
        self._engine()  # also of this program's schema
        return False

    def read(self, look: Callable[[Connection], T]) -> T:
        """Return what a look at one moment of the catalogue gives; CatalogError: it cannot be read."""
        with self.reading() as connection:
            return look(connection)

    def close(self) -> None:
        """Close all connections; what is asked next opens others."""
        with self._lock:
            self._close()

    @abstractmethod
    def _new_engine(self) -> Engine:
        """Return an engine, whatever the database holds."""

    @abstractmethod
    def _adopt(self, found: str | None) -> None:
        """Bring a database of another schema to this program's, or raise MigrationError."""

    def _prepare(self) -> None:
        """See to it that there is something to connect to, before a change."""
        return

    def _identity(self) -> Hashable:
        """Return what tells the database from another in its place."""
        return None

    def _back_up(self, before: str) -> Path | None:
        return None

    def _engine(self) -> Engine:
        """Return the engine of a database that has the schema of this program."""
        with self._lock:
            if self._connected is not None:
                if self._connected[1] == self._identity():
                    return self._connected[0]
                self._close()  # another file is in its place, such as a backup
        with self._translated("read"), self._connect() as engine, engine.connect() as connection:
            found = schema.version(connection, self.where)
        if found != schema.HEAD:
            self._adopt(found)
        with self._lock:
            if self._connected is None:
                self._connected = self._new_engine(), self._identity()
            return self._connected[0]

    @contextmanager
    def _connect(self) -> Iterator[Engine]:
        """Give an engine whose database may have any schema."""
        engine = self._new_engine()
        try:
            yield engine
        finally:
            engine.dispose()

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        """Give a connection in a transaction of which there is one at a time."""
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def after_fork(self, *, is_child: bool) -> None:
        """Go on; a child with connections of its own, and a lock that no thread of its parent holds."""
        if is_child:
            _inherited.append((self._connected, self._watch))
            self._lock, self._connected, self._watch = threading.Lock(), None, None

    def _close(self) -> None:
        self._close_watch()
        if self._connected is not None:
            self._connected[0].dispose()
            self._connected = None

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, OSError, UnicodeError) as error:
            raise self._cannot(what, error) from error

    def _cannot(self, what: str, error: Exception) -> MedVLLMError:
        reason = self._reason(error)
        return CatalogError(
            f"Catalogue {self.where} cannot be {what}: {reason}.{self._advice(reason)}", path=self.where
        )

    def _reason(self, error: Exception) -> str:
        return reason_of(error)

    def _token_of(self, row: "tuple[Any, ...] | None") -> int:
        """Return the catalogue's number, as its head has it; CatalogError: there is none."""
        if row is None or type(row[0]) is not int:
            raise CatalogError(
                f"Catalogue {self.where} is damaged: it does not say what state it is in.\n"
                "See what is wrong: medvllm history verify",
                path=self.where,
            )
        return int(row[0])

    def _advice(self, reason: str) -> str:
        return ""


_inherited: list[object] = []  # a parent's connections: closing them here could end the parent's


def reason_of(error: BaseException) -> str:
    """Return the database's own words, without the statement and its values."""
    own = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    with suppress(IndexError):
        return str(own).strip().splitlines()[0].rstrip(".")
    return type(own).__name__

"""What SQLite and PostgreSQL have in common here: transactions, the schema, and errors."""

import logging
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from medvllm.catalog.sql import schema
from medvllm.catalog.sql.connections import Connections
from medvllm.catalog.sql.reader import ConnectionReader, Reader
from medvllm.errors import CatalogError, MedVLLMError
from medvllm.forking import Forked, register
from medvllm.own_changes import own_changes

if TYPE_CHECKING:
    from sqlalchemy import Connection

T = TypeVar("T")
C = TypeVar("C", bound=Connections)

logger = logging.getLogger(__name__)

WAIT_S = 15  # for another process that is writing


class Database(Forked, ABC, Generic[C]):
    """The database of a stored catalogue. Threads may share it, and a forked process may go on using it."""

    def __init__(self, where: str) -> None:
        self.where = where  # for messages, without a password
        self._lock = threading.Lock()  # guards everything below
        self._connected: tuple[C, Hashable] | None = None  # and what identified the database when it was opened
        self._watch: Any = None  # a connection that is only used to ask whether something has changed
        self._using = threading.Lock()  # guards the next line; taken last
        self._users: Counter[C] = Counter()  # how many threads use connections, the present ones or others
        register(self)

    @abstractmethod
    def change_token(self) -> Hashable:
        """Return a value that changes whenever any process changes the catalogue."""

    @contextmanager
    def reading(self) -> "Iterator[Connection]":
        """Give a connection of SQLAlchemy that sees one moment of the catalogue."""
        with self._translate_errors("read"), self._present() as present, present.engine.connect() as connection:
            yield connection

    @contextmanager
    def looking(self) -> Iterator[Reader]:
        """Give a reader for look-ups. It sees one moment of the catalogue."""
        with self.reading() as connection:
            yield ConnectionReader(connection)

    @contextmanager
    def writing(self) -> "Iterator[Connection]":
        """Give a connection for one transaction. Only one process writes at a time; others wait."""
        with self._translate_errors("written"):
            self._prepare()
        with self._translate_errors("written"), self._present() as present, self._transaction(present) as connection:
            yield connection

    @contextmanager
    def writing_beside(self) -> "Iterator[Connection]":
        """Give a connection to write what is not part of the catalogue. It does not wait for other writers."""
        with self._translate_errors("written"), self._present() as present, present.engine.begin() as connection:
            yield connection

    def migrate(self, target: str = schema.HEAD) -> tuple[str | None, Path | None]:
        """Migrate the database to a schema; return the schema before, and the backup of a SQLite file."""
        from medvllm.catalog.sql.history import Journal

        schema.check_known(target)
        backup = None
        with self._translate_errors("written"):
            self._prepare()
        with self._translate_errors("migrated"), self._connect() as found, self._transaction(found) as connection:
            before = schema.version(connection, self.where)
            if before != target:
                if before is not None:
                    schema.check_kept(connection, before, target)
                    backup = self._back_up(before)
                schema.migrate(connection, before, target)
                if before is not None or target == schema.HEAD:
                    journal = Journal(connection)
                    journal.note("migrated" if before else "created", detail={"from": before, "to": target})
                    journal.write()
        self.close()  # the next connection checks the schema
        return before, backup

    def create(self) -> bool:
        """Create an empty catalogue if there is none, and return whether one was created."""
        with self._translate_errors("written"):
            self._prepare()
        with self._translate_errors("read"):
            found = self._schema()
        if found is None:
            return self.migrate()[0] is None
        with self._present():  # raises an error if the schema is another
            return False

    def read(self, look: "Callable[[Connection], T]") -> T:
        """Return what `look` returns for a connection that sees one moment of the catalogue."""
        with self.reading() as connection:
            return look(connection)

    def look_up(self, look: Callable[[Reader], T]) -> T:
        """Return what `look` returns for a reader that sees one moment of the catalogue."""
        with self.looking() as reader:
            return look(reader)

    def close(self) -> None:
        """Close all connections. A later call opens others."""
        with self._lock:
            self._close()

    @abstractmethod
    def _new_connections(self) -> C:
        """Return connections, whatever schema the database has."""

    @abstractmethod
    def _adopt(self, found: str | None) -> None:
        """Migrate a database that has another schema, or raise MigrationError."""

    def _prepare(self) -> None:
        """Create what a connection needs, before the first change."""
        return

    def _identity(self) -> Hashable:
        """Return a value that differs if another database is put in its place."""
        return None

    def _back_up(self, before: str) -> Path | None:
        return None

    def _schema(self) -> str | None:
        """Return the schema of the database, or None for an empty database."""
        with self._connect() as found, found.engine.connect() as connection:
            return schema.version(connection, self.where)

    @contextmanager
    def _present(self) -> Iterator[C]:
        """Give connections to a database that has the schema of this program."""
        present = self._take_present()
        if present is None:
            with self._translate_errors("read"):
                found = self._schema()
            if found != schema.HEAD:
                self._adopt(found)
            with self._lock:
                if self._connected is None:
                    self._connected = self._new_connections(), self._identity()
                present = self._take(self._connected[0])
        try:
            yield present
        finally:
            self._give_back(present)

    @contextmanager
    def _connect(self) -> Iterator[C]:
        """Give connections to a database that may have any schema."""
        with self._lock:
            other = self._take(self._new_connections())
        try:
            yield other
        finally:
            self._give_back(other)

    def _take_present(self) -> C | None:
        with self._lock:
            if self._connected is None:
                return None
            if self._connected[1] == self._identity():
                return self._take(self._connected[0])
            self._close()  # the file was replaced, for example by a backup
            return None

    def _take(self, connections: C) -> C:
        with self._using:
            self._users[connections] += 1
        return connections

    def _give_back(self, connections: C) -> None:
        """End one thread's use of connections. The last thread closes those that are no longer the present ones."""
        with self._using:
            users = self._users[connections]  # 0 in a forked child: the connections are its parent's
            if users == 1 and not (self._connected and self._connected[0] is connections):
                connections.close()
            self._users[connections] = users - 1
            self._users = +self._users  # without those that nobody uses

    @contextmanager
    def _transaction(self, connections: C) -> "Iterator[Connection]":
        """Give a connection in a transaction that excludes every other writer."""
        try:
            with connections.engine.connect().execution_options(writes=True) as connection, connection.begin():
                yield connection
        finally:
            own_changes.note()

    def after_fork(self, *, is_child: bool) -> None:
        """Continue. A child process gets connections of its own, and a lock that no thread of its parent holds."""
        if is_child:
            _inherited.append((self._connected, self._watch, self._users))
            self._lock, self._connected, self._watch = threading.Lock(), None, None
            self._using, self._users = threading.Lock(), Counter()

    def _close(self) -> None:
        self._close_watch()
        if self._connected is not None:
            (connections, _), self._connected = self._connected, None
            with self._using:
                if connections not in self._users:  # one that is returned after `close` would stay open
                    connections.close()

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    @contextmanager
    def _translate_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, MedVLLMError) or not _is_of_database(error):
                raise
            raise self._cannot(what, error) from error

    def _cannot(self, what: str, error: Exception) -> MedVLLMError:
        reason = self._reason(error)
        return CatalogError(
            f"Catalogue {self.where} cannot be {what}: {reason}.{self._advice(reason)}", path=self.where
        )

    def _reason(self, error: Exception) -> str:
        return reason_of(error)

    def _change_number(self, row: "tuple[Any, ...] | None") -> int:
        """Return the change number in a row of the head, or raise CatalogError if there is none."""
        if row is None or type(row[0]) is not int:
            raise CatalogError(
                f"Catalogue {self.where} is damaged: it has no valid change number.\n"
                "To see what is wrong: medvllm history verify",
                path=self.where,
            )
        return int(row[0])

    def _advice(self, reason: str) -> str:
        return ""


_inherited: list[object] = []  # the parent's connections, which must not be closed here


def reason_of(error: BaseException) -> str:
    """Return the database's own message, without the statement and its values."""
    own = getattr(error, "orig", None) or error  # SQLAlchemy keeps the driver's error there
    with suppress(IndexError):
        return str(own).strip().splitlines()[0].rstrip(".")
    return type(own).__name__


def _is_of_database(error: Exception) -> bool:
    """Return whether an error comes from a database or its file."""
    if isinstance(error, sqlite3.Error | OSError | UnicodeError):
        return True
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, SQLAlchemyError)

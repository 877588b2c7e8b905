"""The catalogue in a SQLite file in WAL mode: readers never wait, and one process writes at a time."""

import os
import sqlite3
import time
from collections.abc import Hashable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from medvllm import settings
from medvllm.catalog.sql import schema
from medvllm.catalog.sql.connections import FileConnections
from medvllm.catalog.sql.database import WAIT_S, Database, logger
from medvllm.catalog.sql.reader import FileReader, Reader
from medvllm.files import make_own, make_own_file

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_MODE = 0o664  # the umask takes bits away
_READ_ONLY_WAIT_S = 0.5  # for a writer that has opened the file and not yet its log, or is just closing both


class SqliteFile(Database[FileConnections]):
    """A file, created by the first change. An older schema is migrated when the file is opened, after a backup."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file
        self._opens_immutable = False  # whether it is opened as immutable: read-only, and nobody writes
        self._watched: Hashable = None  # the file that _watch has open
        self._version: int | None = None  # SQLite's data_version when the change number was read
        self._number = 0  # the change number of the catalogue

    def change_token(self) -> Hashable:
        """Return the file and its change number, or None while there is no file. This takes microseconds."""
        with self._lock:
            identity = self._identity()
            if identity is None:
                return None
            try:
                if self._watch is not None and self._watched != identity:
                    self._close()  # also the engine: it may still have the old file open
                if self._watch is None:
                    self._look()
                    self._watch, self._watched, self._version = self._open(), identity, None
                # It changes when another connection commits. This one never commits.
                (version,) = self._watch.execute("PRAGMA data_version").fetchone()
                if version != self._version:
                    self._number, self._version = self._ask(), version
            except (sqlite3.Error, OSError) as error:
                raise self._cannot("read", error) from error
            return identity, self._number

    @contextmanager
    def looking(self) -> Iterator[Reader]:
        with self._translate_errors("read"), self._present() as present, present.reading() as connection:
            yield FileReader(connection)

    def before_fork(self) -> None:
        """Close all connections, because SQLite's locks belong to a process and would not hold in the child.

        Another process could then delete the write-ahead log that the child writes to, with what the child wrote.
        """
        self._lock.acquire()
        deadline = time.monotonic() + WAIT_S
        while self._users and time.monotonic() < deadline:
            time.sleep(0.001)  # another thread still reads or writes
        self._close()

    def after_fork(self, *, is_child: bool) -> None:
        self._lock.release()

    def _ask(self) -> int:
        try:
            found = self._watch.execute("SELECT revision FROM catalog_head").fetchone()
        except sqlite3.OperationalError:  # not a catalogue, or not yet one: reading it raises the error
            return 0
        return self._change_number(found)

    def _schema(self) -> str | None:
        # The usual answer needs no SQLAlchemy. Every other one comes from the one place that knows all schemas.
        with self._connect() as found, found.reading() as connection, suppress(sqlite3.OperationalError):
            if connection.execute(schema.READ_VERSION).fetchall() == [(schema.HEAD,)]:
                return schema.HEAD
        return super()._schema()

    def _new_connections(self) -> FileConnections:
        self._look()
        return FileConnections(self._new_engine, self._open)

    def _new_engine(self) -> "Engine":
        from sqlalchemy import URL, create_engine, event

        url = URL.create("sqlite", database=str(self._file))
        engine = create_engine(url, creator=self._open, hide_parameters=True)
        event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self) -> None:
        # Only a change creates the file. If reading did, a file on a disk that was just unmounted would become empty.
        # And only a new file is opened and closed here: closing one ends the locks of all connections of the process.
        with self._lock:
            if self._identity() is None:
                make_own(self._file.parent)
                if self._file.parent == settings.HOME():  # private whatever the umask; a file elsewhere may be shared
                    make_own_file(self._file)
                with suppress(FileExistsError):
                    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    os.close(os.open(os.path.realpath(self._file), flags, _MODE))

    def _adopt(self, found: str | None) -> None:
        before, backup = self.migrate()
        if backup:
            logger.warning("Catalogue %s was migrated from schema %s. The backup is %s", self.where, before, backup)

    def _look(self) -> None:
        """Decide how to open the file. All connections to it are opened alike."""
        if self._connected is None and self._watch is None:
            self._opens_immutable = _is_immutable(self._file)

    def _open(self) -> sqlite3.Connection:
        """Return a connection, opened as `_look` decided, or otherwise if the last writer has just removed its log.

        Only a process that may not write needs this. Then `_identity` differs too, and other connections are replaced.
        """
        deadline = time.monotonic() + _READ_ONLY_WAIT_S
        while True:
            try:
                return _open(self._file, self._opens_immutable)
            except sqlite3.OperationalError as error:
                primary = error.sqlite_errorcode & 0xFF  # without what kind of it
                passing = primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
                if not passing or not os.access(self._file, os.R_OK) or time.monotonic() > deadline:
                    raise
            time.sleep(0.005)
            self._opens_immutable = _is_immutable(self._file)

    def _identity(self) -> Hashable:
        """Return what identifies the file, or None while there is none."""
        try:
            status = os.stat(self._file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._cannot("read", error) from error
        if self._opens_immutable:  # it must be reopened as soon as somebody writes to it
            return status.st_dev, status.st_ino, status.st_mtime_ns, _is_immutable(self._file)
        return status.st_dev, status.st_ino

    def _back_up(self, before: str) -> Path:
        return schema.back_up(self._file, before, self._copy)

    def _copy(self, target: Path) -> None:
        with closing(sqlite3.connect(self._file)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)

    def _advice(self, reason: str) -> str:
        file = quote(str(self._file))
        if any(word in reason for word in ("readonly", "unable to open", "denied")):
            return f"\nCheck the permissions: ls -ld {quote(str(self._file.parent))} {file}"
        if "not a database" in reason or "malformed" in reason:
            return (  # what is left in its log would be written into the backup
                f"\nTo list its backups: ls {file}.*.backup\n"
                f"To put one in its place: rm -f {file} {file}-wal {file}-shm && cp BACKUP {file}"
            )
        return ""


def _is_immutable(file: Path) -> bool:
    """Return whether a file is read-only and complete: while anybody writes, there is a log beside it."""
    writable = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
    return file.exists() and not writable and not file.with_name(f"{file.name}-wal").exists()


def _open(file: Path, immutable: bool) -> sqlite3.Connection:
    """Return a connection that does not begin transactions implicitly."""
    uri = file.absolute().as_uri()
    if immutable:
        uri += "?mode=ro&immutable=1"
    else:
        uri += "?mode=rw" if os.access(file, os.W_OK) else "?mode=ro"
    new = not file.stat().st_size  # a file with content may belong to another program
    connection = sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        if new:
            _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch a database to WAL mode. SQLite does not wait here itself while another process does the same."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _begin(connection: "Connection") -> None:
    # A plain BEGIN would fail at its first write, without waiting, if another process has written meanwhile.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

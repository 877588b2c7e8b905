"""The catalogue in a SQLite file, with a log beside it (WAL): readers never wait, writers take turns."""

import os
import sqlite3
import time
from collections.abc import Hashable
from contextlib import closing
from pathlib import Path
from typing import cast

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event

from medvllm import settings
from medvllm.catalog.sql import schema
from medvllm.catalog.sql.database import WAIT_S, Database, logger
from medvllm.files import make_own, make_own_file

_MODE = 0o664  # less what the umask takes


class SqliteFile(Database):
    """A file, made by the first change. It is migrated by itself, after a backup."""

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file
        self._as_it_stands = False  # whether it is read as one that this process cannot write to and nobody has open
        self._watched: Hashable = None  # the file that is watched
        self._version: int | None = None  # SQLite's number of the file's state
        self._number = 0  # the catalogue's own number of it

    def change_token(self) -> Hashable:
        """Return the file and the catalogue's number, or None while there is no file. It costs microseconds."""
        with self._lock:
            identity = self._identity()
            if identity is None:
                return None
            try:
                if self._watch is not None and self._watched != identity:
                    self._close()  # all of it: SQLite may hold one file open, and another of the same name not yet
                if self._watch is None:
                    self._look()
                    self._watch, self._watched, self._version = _open(self._file, self._as_it_stands), identity, None
                # It changes with the commits of others; this connection commits nothing itself.
                (version,) = self._watch.execute("PRAGMA data_version").fetchone()
                if version != self._version:
                    self._number, self._version = self._ask(), version
            except (sqlite3.Error, OSError) as error:
                raise self._cannot("read", error) from error
            return identity, self._number

    def before_fork(self) -> None:
        """Close all: SQLite keeps one record of a file's locks for a process, and in a child none of them would hold.

        Another process could then remove the log that the child writes to, and with it what the child has written.
        """
        self._lock.acquire()
        deadline = time.monotonic() + WAIT_S
        while self._connected and cast(QueuePool, self._connected[0].pool).checkedout() and time.monotonic() < deadline:
            time.sleep(0.001)  # another thread is reading or writing
        self._close()

    def after_fork(self, *, is_child: bool) -> None:
        self._lock.release()

    def _ask(self) -> int:
        try:
            found = self._watch.execute("SELECT revision FROM catalog_head").fetchone()
        except sqlite3.OperationalError:  # no catalogue yet, or none at all: whoever reads it says so
            return 0
        return self._token_of(found)

    def _new_engine(self) -> Engine:
        self._look()
        as_it_stands = self._as_it_stands
        url = URL.create("sqlite", database=str(self._file))
        engine = create_engine(url, creator=lambda: _open(self._file, as_it_stands), hide_parameters=True)
        event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self) -> None:
        # Reading makes no file: one that has just gone, with its disk perhaps, would be an empty one then.
        if self._identity() is None:
            make_own(self._file.parent)
            if self._file.parent == settings.HOME():  # private, whatever the umask; elsewhere it may be for others
                make_own_file(self._file)
            os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE))

    def _adopt(self, found: str | None) -> None:
        before, backup = self.migrate()
        if backup:
            logger.warning("Catalogue %s was migrated from schema %s; before: %s", self.where, before, backup)

    def _look(self) -> None:
        """See how the file is to be opened: all connections to it are alike."""
        if self._connected is None and self._watch is None:
            self._as_it_stands = _stands(self._file)

    def _identity(self) -> Hashable:
        """Return which file it is; None while there is none."""
        try:
            status = os.stat(self._file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._cannot("read", error) from error
        if self._as_it_stands:  # it is another as soon as somebody begins to write to it
            return status.st_dev, status.st_ino, status.st_mtime_ns, _stands(self._file)
        return status.st_dev, status.st_ino

    def _back_up(self, before: str) -> Path:
        return schema.back_up(self._file, before, self._copy)

    def _copy(self, target: Path) -> None:
        with closing(sqlite3.connect(self._file)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)

    def _advice(self, reason: str) -> str:
        if any(word in reason for word in ("readonly", "unable to open", "denied")):
            return f"\nSee who may do so: ls -ld {self._file.parent} {self._file}"
        if "not a database" in reason or "malformed" in reason:
            return f"\nPut a backup in its place, such as one of: ls {self._file}.*.backup"
        return ""


def _stands(file: Path) -> bool:
    """Return whether a file can only be read, and has all that was written: whoever writes has a log beside it."""
    writable = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
    return file.exists() and not writable and not file.with_name(f"{file.name}-wal").exists()


def _open(file: Path, as_it_stands: bool) -> sqlite3.Connection:
    """Return a connection that begins no transaction by itself."""
    uri = file.absolute().as_uri()
    if as_it_stands:
        uri += "?mode=ro&immutable=1"
    else:
        uri += "?mode=rw" if os.access(file, os.W_OK) else "?mode=ro"
    new = not file.stat().st_size  # one that is not, may be somebody else's
    connection = sqlite3.connect(uri, uri=True, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        if new:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _begin(connection: Connection) -> None:
    # A plain BEGIN that comes to write fails at once when another has written meanwhile, without waiting.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

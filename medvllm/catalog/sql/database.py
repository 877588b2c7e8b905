"""One database: connections as each kind needs them, transactions, and the number that changes with the catalogue."""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from medvllm import settings
from medvllm.catalog.sql import schema
from medvllm.catalog.sql.history import Journal
from medvllm.errors import CatalogError, MigrationError, MissingDependencyError

logger = logging.getLogger(__name__)

_WAIT_S = 15  # for another process's turn
_CONNECT_S = 5
_inherited: list[object] = []  # a parent's connections: closing them here could end the parent's
_ASK_AGAIN_S = 5  # a server that did not answer is not asked more often than this


class Database:
    """A catalogue's database: a SQLite file, or a PostgreSQL server by URL. Threads may share it, and forks."""

    def __init__(self, location: Path | str) -> None:
        self.file = location if isinstance(location, Path) else None
        self._url = _url(location)
        self.where = settings.without_password(str(location) if self.file else self._url.render_as_string())
        self._lock = threading.Lock()  # guards all below
        self._process = os.getpid()
        self._as_it_stands = False  # whether a file is read that this process cannot write to, and nobody has open
        self._connected: tuple[Engine, Hashable] | None = None  # and the file, which has the schema of this program
        self._watch: tuple[Hashable, Any] | None = None  # the file watched, and a connection of the watch's own
        self._watches = 0  # how many there were: each counts for itself
        self._seen: Hashable = None
        self._ask_at = 0.0  # 0: the server answers

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection that sees one moment of the catalogue; CatalogError: it cannot be read."""
        with self._translated("read"), self._engine().connect() as connection:
            self._ask_at = 0.0
            if self.file is None:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def writing(self, *, keep: bool = True) -> Iterator[Connection]:
        """Give a connection for one change: all of it is kept, or nothing. Processes take turns."""
        with self._translated("written"), self._turn(self._engine()) as connection:
            self._ask_at = 0.0
            yield connection
            if not keep:
                connection.rollback()

    def revision(self) -> Hashable:
        """Return a value that changes with the catalogue, in whichever process. It costs microseconds, or a round trip.

        A server that does not answer is asked again later: until then the last answer stands.
        """
        with self._lock:
            self._forget_parent()
            if self.file is not None:
                return self._file_revision(self.file)
            if time.monotonic() < self._ask_at:
                return self._seen
        engine = self._engine()
        with self._lock:
            try:
                self._seen, self._ask_at = self._server_revision(engine), 0.0
            except (SQLAlchemyError, self._failure) as error:
                self._close_watch()
                if self._seen is None:
                    raise self._cannot("read", error) from error
                if not self._ask_at:
                    logger.warning("Catalogue %s does not answer; what was read last stands meanwhile.", self.where)
                self._ask_at = time.monotonic() + _ASK_AGAIN_S
            return self._seen

    def migrate(self, revision: str = schema.HEAD) -> tuple[str | None, Path | None]:
        """Bring the database to a schema; return the one it had, and the backup that was made of a SQLite file."""
        if revision not in schema.REVISIONS:
            raise MigrationError(f"There is no schema {revision[:20]!r}: it is one of {', '.join(schema.REVISIONS)}.")
        backup = None
        with self._translated("migrated"), self._connect() as engine, self._turn(engine) as connection:
            if self.file is None:  # a server's tables may not be there yet to take turns by
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('medvllm catalog'))")
            before = schema.version(connection, self.where)
            if before != revision:
                if before is not None and self.file is not None:
                    backup = schema.back_up(self.file, before, self._copy)
                schema.migrate(connection, revision)
                if revision == schema.HEAD:
                    journal = Journal(connection)
                    journal.note("migrated" if before else "created", detail={"from": before, "to": revision})
                    journal.close()
        self.close()  # the next one looks which schema there is
        return before, backup

    def close(self) -> None:
        """Close all connections; what is asked next opens others."""
        with self._lock:
            self._forget_parent()
            self._close()

    def _engine(self) -> Engine:
        """Return the engine of a database that has the schema of this program."""
        with self._lock:
            self._forget_parent()
            if self._connected is not None:
                if self._connected[1] == self._identity():
                    return self._connected[0]
                self._close()  # another file is in its place, such as a backup
        with self._translated("read"), self._connect() as engine, engine.connect() as connection:
            found = schema.version(connection, self.where)
        if found != schema.HEAD:
            if self.file is None:
                state = f"has the schema {found!r}" if found else "is empty"
                raise MigrationError(
                    f"Catalogue {self.where} {state}, and this program needs {schema.HEAD!r}.\n"
                    "Make it so: medvllm catalog migrate",
                    schema=found,
                )
            before, backup = self.migrate()
            if backup:
                logger.warning("Catalogue %s was migrated from schema %s; before: %s", self.where, before, backup)
        with self._lock:
            if self._connected is None:
                self._look()
                self._connected = self._new_engine(self._as_it_stands), self._identity()
            return self._connected[0]

    @contextmanager
    def _connect(self) -> Iterator[Engine]:
        """Give an engine whose database may have any schema."""
        engine = self._new_engine(self.file is not None and _stands(self.file))
        try:
            yield engine
        finally:
            engine.dispose()

    def _new_engine(self, as_it_stands: bool) -> Engine:
        return _file_engine(self.file, as_it_stands) if self.file is not None else _server_engine(self._url)

    def _look(self) -> None:
        """See how a file is to be opened: all connections to it are alike."""
        if self._connected is None and self._watch is None:
            self._as_it_stands = self.file is not None and _stands(self.file)

    def _identity(self) -> Hashable:
        """Return which file it is; None for a server, and while there is no file."""
        if self.file is None:
            return None
        try:
            status = os.stat(self.file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._cannot("read", error) from error
        if self._as_it_stands:  # it is another as soon as somebody begins to write to it
            return status.st_dev, status.st_ino, status.st_mtime_ns, _stands(self.file)
        return status.st_dev, status.st_ino

    @contextmanager
    def _turn(self, engine: Engine) -> Iterator[Connection]:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            if self.file is None:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_WAIT_S}s'")
            yield connection

    def _forget_parent(self) -> None:
        """After a fork: a connection belongs to the process that opened it."""
        if self._process != os.getpid():
            _inherited.append((self._connected, self._watch))
            self._process, self._connected, self._watch = os.getpid(), None, None

    def _close(self) -> None:
        self._close_watch()
        if self._connected is not None:
            self._connected[0].dispose()
            self._connected = None

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch[1].close()
            self._watch = None

    def _file_revision(self, file: Path) -> Hashable:
        identity = self._identity()
        if identity is None:
            return None
        try:
            if self._watch is not None and self._watch[0] != identity:
                self._close()  # all of it: SQLite may hold one file open, and another of the same name not yet
            if self._watch is None:
                self._look()
                # data_version tells of the commits of others: this connection commits nothing itself.
                self._watch = self._identity(), _open(file, self._as_it_stands)
                self._watches += 1
            (number,) = self._watch[1].execute("PRAGMA data_version").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise self._cannot("read", error) from error
        return self._watch[0], self._watches, number

    def _server_revision(self, engine: Engine) -> Hashable:
        if self._watch is None:
            pooled = engine.raw_connection()
            connection: Any = pooled.driver_connection
            pooled.detach()
            connection.autocommit = True
            self._watch = None, connection
        (number,) = self._watch[1].execute("SELECT revision FROM catalog_head").fetchone()
        return int(number)

    @cached_property
    def _failure(self) -> type[Exception]:
        import psycopg

        return psycopg.Error

    def _copy(self, target: Path) -> None:
        assert self.file is not None
        with closing(sqlite3.connect(self.file)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, OSError, UnicodeError) as error:
            raise self._cannot(what, error) from error

    def _cannot(self, what: str, error: Exception) -> CatalogError:
        reason, advice = _reason(error), ""
        if self.file is not None and any(word in reason for word in ("readonly", "unable to open", "denied")):
            advice = f"\nSee who may do so: ls -ld {self.file.parent} {self.file}"
        return CatalogError(f"Catalogue {self.where} cannot be {what}: {reason}.{advice}", path=self.where)


def _url(location: Path | str) -> URL:
    if isinstance(location, Path):
        return URL.create("sqlite", database=str(location))
    try:
        return make_url(location).set(drivername="postgresql+psycopg")
    except ArgumentError as error:
        raise CatalogError("MEDVLLM_CATALOG is no URL: postgresql://user:password@host:5432/database") from error


def _file_engine(file: Path, as_it_stands: bool) -> Engine:
    file.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(_url(file), creator=lambda: _open(file, as_it_stands), hide_parameters=True)
    event.listen(engine, "begin", _begin)
    return engine


def _stands(file: Path) -> bool:
    """Return whether a file can only be read, and has all that was written: whoever writes has a log beside it."""
    writable = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
    return file.exists() and not writable and not file.with_name(f"{file.name}-wal").exists()


def _open(file: Path, as_it_stands: bool) -> sqlite3.Connection:
    """Return a connection that begins no transaction by itself."""
    uri = file.absolute().as_uri()
    if as_it_stands:
        uri += "?mode=ro&immutable=1"
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        uri += "?mode=ro"
    new = not file.exists() or not file.stat().st_size  # one that is not, may be somebody else's
    connection = sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
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


def _server_engine(url: URL) -> Engine:
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            hide_parameters=True,
            isolation_level="READ COMMITTED",  # whoever had the turn before is seen
            connect_args={"connect_timeout": _CONNECT_S},
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise MissingDependencyError(
            "A catalogue on PostgreSQL needs psycopg, which is not installed.\n"
            "Install it: pip install 'medvllm[postgres]'"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the database's own words, without the statement and its values."""
    own = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    with suppress(IndexError):
        return str(own).strip().splitlines()[0].rstrip(".")
    return type(own).__name__

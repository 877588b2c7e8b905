"""The catalogue on a PostgreSQL server. If the server does not answer, models that were looked up before still load."""

import re
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError

from medvllm.catalog.address import Address, wrong
from medvllm.catalog.sql import schema
from medvllm.catalog.sql.connections import Connections
from medvllm.catalog.sql.database import WAIT_S, Database, T, logger, reason_of
from medvllm.catalog.sql.reader import ConnectionReader, Reader
from medvllm.errors import CatalogError, MedVLLMError, MigrationError, MissingDependencyError
from medvllm.near_names import near_names

_CONNECT_S = 5
_ASK_AGAIN_S = 5  # how long to wait before asking a server again that did not answer


class PostgresServer(Database[Connections]):
    """A database on a server. It is only migrated by `medvllm catalog migrate`, when the team decides."""

    def __init__(self, url: str) -> None:
        self._url, self._address = url, Address.of(url)
        super().__init__(self._address.shown)
        self._seen: int | None = None
        self._ask_at = 0.0  # when to ask the server again; 0: it answers

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with super().reading() as connection:
            self._ask_at = 0.0  # the server answers
            yield connection.execution_options(isolation_level="REPEATABLE READ")

    def read(self, look: Callable[[Connection], T]) -> T:
        try:
            return super().read(look)
        except CatalogError as error:
            # Try again if the connection ended while it was idle. Reading twice does no harm.
            if not getattr(error.__cause__, "connection_invalidated", False):
                raise
        return super().read(look)

    def look_up(self, look: Callable[[Reader], T]) -> T:
        return self.read(lambda connection: look(ConnectionReader(connection)))

    def change_token(self) -> Hashable:
        """Return the change number, by one round trip. If the server does not answer, return the last one."""
        with self._lock:
            if time.monotonic() < self._ask_at:
                return self._seen
        with self._present() as present, self._lock:
            import psycopg  # the engine has it

            try:
                self._seen, self._ask_at = self._ask_twice(present.engine), 0.0
            except (SQLAlchemyError, psycopg.Error) as error:
                self._close_watch()
                if self._seen is None or not is_lost(error):
                    raise self._cannot("read", error) from error
                if not self._ask_at:
                    logger.warning("Catalogue %s does not answer. What was read before is still used.", self.where)
                self._ask_at = time.monotonic() + _ASK_AGAIN_S
            return self._seen

    def _ask_twice(self, engine: Engine) -> int:
        """Return the change number. If the idle connection was ended, ask again with a new one."""
        if self._watch is not None:
            import psycopg

            try:
                return self._ask(engine)
            except psycopg.Error as error:
                self._close_watch()
                if not is_lost(error):
                    raise
        return self._ask(engine)

    def _ask(self, engine: Engine) -> int:
        if self._watch is None:
            pooled = engine.raw_connection()
            connection: Any = pooled.driver_connection
            pooled.detach()
            connection.autocommit = True
            self._watch = connection
        return self._change_number(self._watch.execute("SELECT revision FROM catalog_head").fetchone())

    def _new_connections(self) -> Connections:
        engine = self._new_engine()
        return Connections(lambda: engine)

    def _new_engine(self) -> Engine:
        arguments = {"connect_timeout": _CONNECT_S, "tcp_user_timeout": WAIT_S * 1000, **self._address.arguments()}
        try:
            self._check(arguments)
            return create_engine(
                "postgresql+psycopg://",
                pool_pre_ping=True,
                hide_parameters=True,
                isolation_level="READ COMMITTED",  # after waiting for the lock, see what the process before has written
                use_native_hstore=False,  # looking for the type would cost a round trip
                # A prepared statement belongs to one connection, but a pooler may give each transaction another one.
                connect_args={**arguments, "prepare_threshold": None},
            )
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise MissingDependencyError(
                "A catalogue on PostgreSQL needs psycopg, which is not installed.\n"
                "Install it: pip install 'medvllm[postgres]'"
            ) from error

    def _check(self, arguments: Iterable[str]) -> None:
        """Raise SettingError if libpq does not know a parameter of the URL."""
        from psycopg.pq import Conninfo

        known = [option.keyword.decode() for option in Conninfo.get_defaults()]
        for name in arguments:
            if name not in known:
                near = near_names(name, known)
                raise wrong(
                    self._url,
                    f"has the parameter {name[:40]!r}, which PostgreSQL does not know"
                    + (f" (did you mean {near[0]!r}?)" if near else ""),
                )

    def _cannot(self, what: str, error: Exception) -> MedVLLMError:
        reason = self._address.without_secrets(reason_of(error))
        if _WRONG_VALUE.search(reason):
            return wrong(self._url, f"cannot be used: {reason.removeprefix('connection is bad: ')}")
        return super()._cannot(what, error)

    def _reason(self, error: Exception) -> str:
        return self._address.without_secrets(super()._reason(error))

    def _adopt(self, found: str | None) -> None:
        state = f"has the schema {found!r}" if found else "is empty"
        raise MigrationError(
            f"Catalogue {self.where} {state}, but this program needs {schema.HEAD!r}.\n"
            f"Run: medvllm catalog {'migrate' if found else 'init'}",
            schema=found,
        )

    @contextmanager
    def _transaction(self, connections: Connections) -> Iterator[Connection]:
        with super()._transaction(connections) as connection:
            self._ask_at = 0.0
            connection.execute(select(func.set_config("lock_timeout", f"{WAIT_S}s", True)))
            # An advisory lock, because before the first migration there is no table to lock.
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("medvllm catalog"))))
            yield connection


def is_lost(error: BaseException) -> bool:
    """Return whether a server could not be reached or ended the connection. Any other error is an answer."""
    import psycopg

    own = error.orig if isinstance(error, DBAPIError) else error
    state = own.sqlstate if isinstance(own, psycopg.Error) else None
    if state is not None:
        return state.startswith("08") or state in _ENDED
    if not isinstance(own, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    # An error without a state concerns the connection. If the server refused it, the message has its reason.
    refusals = [line for line in str(own).splitlines() if "FATAL:" in line]
    return not refusals or any(word in line for line in refusals for word in _PASSING)


_ENDED = ("57P01", "57P02", "57P03", "57P05", "25P03")  # by an administrator, a crash, a start, or for being idle
_PASSING = (
    *("starting up", "shutting down", "in recovery mode", "not yet accepting", "not accepting", "terminating"),
    *("too many", "connection slots", "cannot connect to server", "server login", "login failed", "wait_timeout"),
)
# Messages of libpq and psycopg about the value of a parameter.
_WRONG_VALUE = re.compile(r"invalid .*(value|port number)|bad value for|could not match .* to|definition of service")

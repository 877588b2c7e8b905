"""The catalogue on a PostgreSQL server, for a team. A server that does not answer stops no model that is known."""

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, func, make_url, select
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from medvllm import settings
from medvllm.catalog.sql import schema
from medvllm.catalog.sql.database import WAIT_S, Database, logger
from medvllm.errors import CatalogError, MigrationError, MissingDependencyError

_CONNECT_S = 5
_ASK_AGAIN_S = 5  # a server that did not answer is not asked more often than this


class PostgresServer(Database):
    """A database by its URL. It waits for `medvllm catalog migrate`: the team chooses the moment."""

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        super().__init__(settings.without_password(self._url.render_as_string()))
        self._seen: int | None = None
        self._ask_at = 0.0  # 0: the server answers

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with super().reading() as connection:
            self._ask_at = 0.0  # it answers
            yield connection.execution_options(isolation_level="REPEATABLE READ")

    def revision(self) -> Hashable:
        """Return the catalogue's number, for a round trip. While the server does not answer, the last one stands."""
        with self._lock:
            if time.monotonic() < self._ask_at:
                return self._seen
        engine = self._engine()
        import psycopg  # the engine has it

        with self._lock:
            try:
                self._seen, self._ask_at = self._ask(engine), 0.0
            except (SQLAlchemyError, psycopg.Error) as error:
                self._close_watch()
                if self._seen is None:
                    raise self._cannot("read", error) from error
                if not self._ask_at:
                    logger.warning("Catalogue %s does not answer; what was read last stands meanwhile.", self.where)
                self._ask_at = time.monotonic() + _ASK_AGAIN_S
            return self._seen

    def _ask(self, engine: Engine) -> int:
        if self._watch is None:
            pooled = engine.raw_connection()
            connection: Any = pooled.driver_connection
            pooled.detach()
            connection.autocommit = True
            self._watch = connection
        return self._revision_of(self._watch.execute("SELECT revision FROM catalog_head").fetchone())

    def _new_engine(self) -> Engine:
        try:
            return create_engine(
                self._url,
                pool_pre_ping=True,
                hide_parameters=True,
                isolation_level="READ COMMITTED",  # whoever had the turn before is seen
                connect_args={"connect_timeout": _CONNECT_S, "tcp_user_timeout": WAIT_S * 1000},
            )
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise MissingDependencyError(
                "A catalogue on PostgreSQL needs psycopg, which is not installed.\n"
                "Install it: pip install 'medvllm[postgres]'"
            ) from error

    def _adopt(self, found: str | None) -> None:
        state = f"has the schema {found!r}" if found else "is empty"
        raise MigrationError(
            f"Catalogue {self.where} {state}, and this program needs {schema.HEAD!r}.\n"
            f"Make it so: medvllm catalog {'migrate' if found else 'init'}",
            schema=found,
        )

    @contextmanager
    def _turn(self, engine: Engine) -> Iterator[Connection]:
        with super()._turn(engine) as connection:
            self._ask_at = 0.0
            connection.execute(select(func.set_config("lock_timeout", f"{WAIT_S}s", True)))
            # Not a row's: before a migration there are no tables.
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext("medvllm catalog"))))
            yield connection


def _parsed(url: str) -> URL:
    try:
        return make_url(url).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError) as error:
        raise CatalogError("MEDVLLM_CATALOG is no URL: postgresql://user:password@host:5432/database") from error

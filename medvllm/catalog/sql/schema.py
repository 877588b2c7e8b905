"""Which schema a database has, and the migrations to the one that this program knows."""

import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from medvllm.errors import CatalogError, MigrationError
from medvllm.files import chmod, link_or_copy, make_own_file

VERSION_TABLE = "catalog_schema"
REVISIONS = ("0001", "0002", "0003")  # in their order; the last is the one that this program reads and writes
HEAD = REVISIONS[-1]
_PROTECTION = "0002"  # brought protected aliases
_SCRIPTS = Path(__file__).parent / "migrations"


def version(connection: Connection, where: str) -> str | None:
    """Return the schema of a database, None for an empty one.

    MigrationError: it is newer than this program. CatalogError: it holds something else.
    """
    tables = inspect(connection).get_table_names()
    if VERSION_TABLE not in tables:
        if tables and connection.dialect.name == "sqlite":  # a server's database may be shared with others
            raise CatalogError(f"{where} is a database, but no catalogue: it has the table {tables[0][:80]!r}.")
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    if found not in (None, *REVISIONS):
        raise MigrationError(
            f"Catalogue {where} has the schema {str(found)[:20]!r}, and this program knows {HEAD!r} at most.\n"
            "It is left as it is. Install the program that wrote it, or a later one: pip install --upgrade medvllm",
            schema=found,
        )
    return found if found is None else str(found)


def check_known(revision: str) -> None:
    """Raise MigrationError unless a schema is one that this program can make."""
    if revision not in REVISIONS:
        raise MigrationError(f"There is no schema {revision[:20]!r}: it is one of {', '.join(REVISIONS)}.")


def check_kept(connection: Connection, before: str, revision: str) -> None:
    """Raise MigrationError when an earlier schema cannot keep what the database has: the protection of aliases."""
    if not revision < _PROTECTION <= before:
        return
    query = text("SELECT name, alias FROM catalog_aliases WHERE guarded ORDER BY name, alias")
    found = list(connection.execute(query))
    if found:
        commands = "\n  ".join(f"medvllm alias unprotect {name} {alias} --reason 'why'" for name, alias in found[:10])
        raise MigrationError(
            f"Schema {revision!r} knows no protected aliases, and there are {len(found)}: anybody could move them.\n"
            f"If that is meant, lift the protection first:\n  {commands}",
            schema=before,
        )


def migrate(connection: Connection, before: str | None, revision: str) -> None:
    """Bring a database from a schema to another, upwards or downwards, in the transaction that the caller has begun."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    downwards = before is not None and before > revision
    (command.downgrade if downwards else command.upgrade)(config, revision)


def back_up(file: Path, schema: str, copy: Callable[[Path], None]) -> Path:
    """Write a copy of a SQLite file beside it, whole or not at all, and return where. One process at a time does."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target, partial = file.with_name(f"{file.name}.{schema}-{now}.backup"), file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)  # of a process that died
    try:
        make_own_file(partial)
        copy(partial)
        chmod(partial, stat.S_IMODE(file.stat().st_mode))  # whom the file is hidden from, its copy is
        link_or_copy(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target

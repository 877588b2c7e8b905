"""Schemas of the database, and the migrations between them."""

import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from medvllm.errors import CatalogError, MigrationError
from medvllm.files import chmod, link_or_copy, make_own_file

if TYPE_CHECKING:
    from sqlalchemy import Connection

VERSION_TABLE = "catalog_schema"
READ_VERSION = f"SELECT version_num FROM {VERSION_TABLE}"
SCHEMAS = ("0001", "0002", "0003", "0004")  # in order; this program uses the last one
HEAD = SCHEMAS[-1]
_PROTECTION = "0002"  # the first schema with protected aliases
_SCRIPTS = Path(__file__).parent / "migrations"


def version(connection: "Connection", where: str) -> str | None:
    """Return the schema of a database, or None for an empty database.

    Raises:
        MigrationError: The schema is newer than this program.
        CatalogError: The database is not a catalogue.
    """
    from sqlalchemy import inspect, text

    tables = inspect(connection).get_table_names()
    if VERSION_TABLE not in tables:
        if tables and connection.dialect.name == "sqlite":  # a server's database may be shared with others
            raise CatalogError(f"{where} is a database but not a catalogue: it has the table {tables[0][:80]!r}.")
        return None
    found = connection.execute(text(READ_VERSION)).scalar()
    if found not in (None, *SCHEMAS):
        raise MigrationError(
            f"Catalogue {where} has the schema {str(found)[:20]!r}, but this program knows none after {HEAD!r}.\n"
            "Nothing was changed. Install the version that wrote it, or a newer one: pip install --upgrade medvllm",
            schema=found,
        )
    return found if found is None else str(found)


def check_known(target: str) -> None:
    """Raise MigrationError if this program does not know a schema."""
    if target not in SCHEMAS:
        raise MigrationError(f"Schema {target[:20]!r} is not known. Known are: {', '.join(SCHEMAS)}.")


def check_kept(connection: "Connection", before: str, target: str) -> None:
    """Raise MigrationError if an earlier schema would lose the protection of aliases."""
    if not target < _PROTECTION <= before:
        return
    from sqlalchemy import text

    query = text("SELECT name, alias FROM catalog_aliases WHERE guarded ORDER BY name, alias")
    found = list(connection.execute(query))
    if found:
        commands = "\n  ".join(f"medvllm alias unprotect {name} {alias} --reason 'why'" for name, alias in found[:10])
        raise MigrationError(
            f"Schema {target!r} has no protected aliases, and the catalogue has {len(found)}: anybody could move them "
            f"afterwards.\nTo migrate anyway, end the protection first:\n  {commands}",
            schema=before,
        )


def migrate(connection: "Connection", before: str | None, target: str) -> None:
    """Migrate a database to a newer or an older schema, in the transaction that the caller has begun."""
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    downwards = before is not None and before > target
    (command.downgrade if downwards else command.upgrade)(config, target)


def back_up(file: Path, schema: str, copy: Callable[[Path], None]) -> Path:
    """Write a complete copy of a SQLite file beside it, and return its path. The caller holds the write lock."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    target, partial = file.with_name(f"{file.name}.{schema}-{now}.backup"), file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)  # left by a process that was killed
    try:
        make_own_file(partial)
        copy(partial)
        chmod(partial, stat.S_IMODE(file.stat().st_mode))  # the copy is as private as the file
        link_or_copy(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target

"""Converts rows of the tables to values, and back."""

import json
from typing import Any

from sqlalchemy import Connection, Row, select

from medvllm.catalog.events import Alias
from medvllm.catalog.record import Facts
from medvllm.catalog.sql.history import sha256, to_json
from medvllm.catalog.sql.tables import MAX_NUMBER, aliases, names
from medvllm.errors import CatalogError


def version_row(name: str, number: int, facts: Facts) -> dict[str, Any]:
    """Return the row of a version."""
    text = to_json(facts)
    return {"name": name, "number": number, "model_type": facts["model_type"], "facts": text, "sha256": sha256(text)}


def facts_of(row: Row[Any]) -> dict[str, Any]:
    """Return the facts of a version's row.

    Raises:
        CatalogError: They are not what was written.
    """
    if sha256(row.facts) != row.sha256:
        raise CatalogError(
            f"The catalogue is damaged: version {row.number} of model {row.name!r} is not what was written.\n"
            "Restore a backup. To see what else is wrong: medvllm history verify",
            model=row.name,
        )
    facts: dict[str, Any] = json.loads(row.facts)
    return facts


def number_of(suffix: str) -> int | None:
    """Return the number that a suffix states, None for an alias, 0 for a number that no version can have."""
    if not suffix.isdecimal():
        return None
    return int(suffix) if len(suffix) <= len(str(MAX_NUMBER)) and int(suffix) <= MAX_NUMBER else 0


def list_names(connection: Connection) -> list[str]:
    """Return the names that have a version, sorted."""
    query = select(names.c.name).where(names.c.current.is_not(None)).order_by(names.c.name)
    return list(connection.execute(query).scalars())


def list_aliases(connection: Connection, name: str | None) -> list[Alias]:
    """Return the aliases of a name, or of all names, sorted."""
    query = select(aliases).order_by(aliases.c.name, aliases.c.alias)
    if name is not None:
        query = query.where(aliases.c.name == name)
    return [Alias(row.name, row.alias, row.number, row.protected) for row in connection.execute(query)]

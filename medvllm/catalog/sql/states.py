"""Reads the state of a name from the tables, and writes what an event changed in it."""

from typing import Any

from sqlalchemy import Connection, and_, bindparam, delete, insert, select, update

from medvllm.catalog.record import Facts
from medvllm.catalog.sql.lookups import find_number, list_aliases
from medvllm.catalog.sql.reader import ConnectionReader
from medvllm.catalog.sql.tables import aliases, names, other_names, versions
from medvllm.catalog.sql.texts import sha256, to_json
from medvllm.catalog.state import NameState
from medvllm.catalog.state import other_names as other_names_of

# Each statement is made once: making one takes longer than executing it.
_NUMBERS = select(names.c.newest, versions.c.number).join_from(names, versions, isouter=True)
_NUMBERS = _NUMBERS.where(names.c.name == bindparam("of"))
_THIS_VERSION = and_(versions.c.name == bindparam("of"), versions.c.number == bindparam("at"))
_THIS_ALIAS = and_(aliases.c.name == bindparam("of"), aliases.c.alias == bindparam("called"))


def read_state(connection: Connection, name: str) -> NameState:
    """Return the versions and aliases of a name. Facts are left out: `read_facts` reads those of one version."""
    rows = connection.execute(_NUMBERS, {"of": name}).all()
    if not rows:
        return NameState()
    numbers = frozenset(row.number for row in rows if row.number is not None)
    known = list_aliases(ConnectionReader(connection), name)
    return NameState(rows[0].newest, numbers, {}, {alias.alias: alias for alias in known})


def read_facts(connection: Connection, name: str, number: int) -> Facts | None:
    """Return the facts of a version, or None if there is no such version.

    Raises:
        CatalogError: They are not what was written.
    """
    row = find_number(ConnectionReader(connection), name, number)
    return None if row is None else row.facts()


def version_row(name: str, number: int, facts: Facts) -> dict[str, Any]:
    """Return the row of a version."""
    text = to_json(facts)
    return {"name": name, "number": number, "model_type": facts["model_type"], "facts": text, "sha256": sha256(text)}


def write_changes(connection: Connection, name: str, before: NameState, after: NameState) -> None:
    """Write what differs between two states of a name."""
    if (before.newest, before.current) != (after.newest, after.current):
        values = {"newest": after.newest, "current": after.current}
        if before.newest:
            connection.execute(update(names).where(names.c.name == name).values(values))
        else:
            connection.execute(insert(names), {"name": name, **values})
    if before.numbers != after.numbers or before.facts is not after.facts:
        _write_versions(connection, name, before, after)
    if before.aliases is not after.aliases:
        _write_aliases(connection, name, before, after)


def _write_versions(connection: Connection, name: str, before: NameState, after: NameState) -> None:
    for number in before.numbers - after.numbers:  # their other names go with them
        connection.execute(delete(versions).where(_THIS_VERSION), {"of": name, "at": number})
    for number, facts in after.facts.items():
        if number not in before.numbers:
            connection.execute(insert(versions), version_row(name, number, facts))
            if others := sorted(other_names_of(facts)):
                rows = [{"other": other, "name": name, "number": number} for other in others]
                connection.execute(insert(other_names), rows)
        elif facts is not before.facts[number]:
            row = version_row(name, number, facts)
            changed = {column: row[column] for column in ("model_type", "facts", "sha256")}
            connection.execute(update(versions).where(_THIS_VERSION).values(changed), {"of": name, "at": number})


def _write_aliases(connection: Connection, name: str, before: NameState, after: NameState) -> None:
    for called in before.aliases.keys() | after.aliases.keys():
        known, alias = before.aliases.get(called), after.aliases.get(called)
        if known == alias:
            continue
        if known is not None:
            connection.execute(delete(aliases).where(_THIS_ALIAS), {"of": name, "called": called})
        if alias is not None:
            values = {"name": name, "alias": called, "number": alias.version, "protected": alias.protected}
            connection.execute(insert(aliases), values)

"""The queries that look up entries, names and aliases. They are the same for both databases."""

import json
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from medvllm.catalog.events import Alias
from medvllm.catalog.sql.conditions import Conditions, is_one_of
from medvllm.catalog.sql.reader import Reader
from medvllm.catalog.sql.texts import sha256
from medvllm.errors import CatalogError

MAX_NUMBER = 2**31 - 1  # of an INTEGER
FEW = 20_000  # rows
_AT_ONCE = 500  # names

_VERSIONS = "SELECT v.name, v.number, v.model_type, v.facts, v.sha256 FROM catalog_versions v"
_IS_MEANT = "n.name = v.name AND n.current = v.number"  # by the bare name
_MEANT = f"{_VERSIONS} JOIN catalog_names n ON {_IS_MEANT}"
_POINTED_TO = f"{_VERSIONS} JOIN catalog_aliases a ON a.name = v.name AND a.number = v.number"
_FITTING = "SELECT v.name FROM catalog_versions v %s LIMIT :most"
_LOCATIONS = "SELECT v.name, v.facts ->> 'model_path' FROM catalog_versions v"
_POSTGRESQL_LOCATIONS = (  # it refuses to look into JSON with this character, whichever fact has it
    "SELECT v.name, CASE WHEN v.facts LIKE '%\\u0000%' THEN '/' ELSE CAST(v.facts AS json) ->> 'model_path' END "
    "FROM catalog_versions v"
)
_NAMES = "SELECT name FROM catalog_names"
_ALIASES = "SELECT name, alias, number, guarded FROM catalog_aliases"
_NUMBERED = f"{_VERSIONS} WHERE v.name = :name AND v.number = :number"


class VersionRow(NamedTuple):
    """One version, as the database keeps it."""

    name: str
    number: int
    model_type: str
    text: str  # the facts as JSON
    sha256: str

    def facts(self) -> dict[str, Any]:
        """Return the facts.

        Raises:
            CatalogError: They are not what was written.
        """
        if sha256(self.text) != self.sha256:
            raise CatalogError(
                f"The catalogue is damaged: version {self.number} of model {self.name!r} is not what was written.\n"
                "Restore a backup. To see what else is wrong: medvllm history verify",
                model=self.name,
            )
        facts: dict[str, Any] = json.loads(self.text)
        return facts

    def content(self) -> tuple[int, dict[str, Any]]:
        """Return the number and the facts."""
        return self.number, self.facts()


def number_of(suffix: str) -> int | None:
    """Return the number that a suffix states, None for an alias, 0 for a number that no version can have."""
    if not suffix.isdecimal():
        return None
    return int(suffix) if len(suffix) <= len(str(MAX_NUMBER)) and int(suffix) <= MAX_NUMBER else 0


def find_version(reader: Reader, name: str, suffix: str | None) -> VersionRow | None:
    """Return the version that a name means, alone or with a number or an alias, or None."""
    if suffix is None:
        return _one(reader.read(f"{_MEANT} WHERE v.name = :name", {"name": name}))
    if (number := number_of(suffix)) is not None:
        return find_number(reader, name, number)
    return _one(
        reader.read(f"{_POINTED_TO} WHERE v.name = :name AND a.alias = :alias", {"name": name, "alias": suffix})
    )


def find_number(reader: Reader, name: str, number: int) -> VersionRow | None:
    """Return one version of a name, or None."""
    return _one(reader.read(_NUMBERED, {"name": name, "number": number}))


def list_versions(reader: Reader, name: str | None) -> list[VersionRow]:
    """Return every version of a name, or of all names, sorted."""
    where = "" if name is None else "WHERE v.name = :name"
    return [VersionRow(*row) for row in reader.read(f"{_VERSIONS} {where} ORDER BY v.name, v.number", _of(name))]


def stream_meant(reader: Reader, after: str | None, conditions: Conditions | None) -> Iterator[VersionRow]:
    """Iterate over the versions that bare names mean, sorted by name.

    Args:
        reader: Where to read.
        after: Only names behind this one.
        conditions: Only versions that meet them.
    """
    wanted = {} if after is None else {"v.name > :after": {"after": after}}
    if conditions is not None and conditions.text:
        wanted[f"({conditions.text})"] = conditions.values
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    values = {name: value for values in wanted.values() for name, value in values.items()}
    if conditions is not None and conditions.text:
        # Of few, the names first: to try the condition in the order of names would cost a search for each row.
        fitting = reader.read(_FITTING % where, {**values, "most": FEW + 1})
        if len(fitting) <= FEW:
            return _stream_named(reader, {name for (name,) in fitting})
    return map(VersionRow._make, reader.stream(f"{_MEANT} {where} ORDER BY v.name", values))


def _stream_named(reader: Reader, names: Collection[str]) -> Iterator[VersionRow]:
    """Iterate over the versions that some bare names mean, sorted by name."""
    wanted, is_one = sorted(names), is_one_of(":names", is_sqlite=reader.is_sqlite)
    for begin in range(0, len(wanted), _AT_ONCE):
        values = {"names": json.dumps(wanted[begin : begin + _AT_ONCE])}
        yield from map(VersionRow._make, reader.read(f"{_MEANT} WHERE {is_one} ORDER BY v.name", values))


def list_locations(reader: Reader) -> list[tuple[str, str | None]]:
    """Return the name of each version, and its `model_path`: None if it has none."""
    return reader.read(_LOCATIONS if reader.is_sqlite else _POSTGRESQL_LOCATIONS)


def list_numbers(reader: Reader, name: str) -> list[int]:
    """Return the numbers of a name's versions, sorted."""
    query = "SELECT number FROM catalog_versions WHERE name = :name ORDER BY number"
    return [number for (number,) in reader.read(query, {"name": name})]


def list_names(reader: Reader, *, ever: bool = False) -> list[str]:
    """Return the names that have a version, or ever had one, sorted."""
    rows = reader.read(_NAMES if ever else f"{_NAMES} WHERE current IS NOT NULL")
    return sorted(name for (name,) in rows)  # here, as SQLite would go to the table for each entry of its index


def was_removed(reader: Reader, name: str) -> bool:
    """Return whether a name had versions and has none now."""
    return bool(reader.read("SELECT 1 FROM catalog_names WHERE name = :name AND current IS NULL", {"name": name}))


def list_owners(reader: Reader, other: str) -> list[str]:
    """Return the names of the entries of which a version is also known as `other`, sorted."""
    query = "SELECT DISTINCT name FROM catalog_other_names WHERE other = :other ORDER BY name"
    return [name for (name,) in reader.read(query, {"other": other})]


def list_aliases(reader: Reader, name: str | None) -> list[Alias]:
    """Return the aliases of a name, or of all names, sorted."""
    query = _ALIASES if name is None else f"{_ALIASES} WHERE name = :name"
    rows = reader.read(f"{query} ORDER BY name, alias", _of(name))
    return [Alias(name, alias, number, bool(protected)) for name, alias, number, protected in rows]


def _of(name: str | None) -> dict[str, str]:
    return {} if name is None else {"name": name}


def _one(rows: list[Any]) -> VersionRow | None:
    return VersionRow(*rows[0]) if rows else None

"""The history is changed in a few hundred generated ways: each is named, or told by the hash that is kept elsewhere."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, text

from medvllm.catalog import StoredCatalog
from medvllm.catalog.sql.check import check
from medvllm.catalog.sql.history import FIRST
from medvllm.catalog.sql.texts import sha256, to_json
from medvllm.engine.model_runner import ModelRegistry
from tests.support.spread import spread
from tests.support.sql import Row, change, rows
from tests.test_history import _unlock

Mutation = Callable[[random.Random, list[Row]], None]
SEQS = (0, -1, -7, -(2**62), 2**62, 10**6)


@pytest.fixture
def catalog(catalog_url: str, registry: ModelRegistry) -> StoredCatalog:
    """A catalogue with a dozen events of many kinds."""
    for i in range(4):
        registry.register(f"m{i % 2}", "clinical", description=str(i), persist=True, replace=True, reason=f"r{i}")
    catalog = registry.catalog
    catalog.set_alias("m0", "production", 1)
    catalog.set_alias("m0", "production", 2)
    catalog.protect("m1", "production")
    catalog.tag("m1", add={"t": None})
    catalog.update("m0@2", deprecated="old")
    catalog.remove("m1@1")
    catalog.note_load(registry.get_metadata("m0"), {"snapshot": "x"})
    assert catalog.check_history()[2] == []
    _unlock(catalog_url)
    return catalog


def _forged(chance: random.Random, found: list[Row]) -> Row:
    record = {**json.loads(chance.choice(found)["record"]), "who": "dr.smith"}
    return {"at": record["at"], "name": record["name"], "record": to_json(record), "hash": FIRST}


def _insert(chance: random.Random, found: list[Row]) -> None:
    """A row in front of the others or behind them."""
    taken = {row["seq"] for row in found}
    seq = chance.choice([seq for seq in (*SEQS, len(found) + 1) if seq not in taken])
    row = {"seq": seq, **_forged(chance, found)}
    if chance.random() < 0.5:
        row["record"] = to_json({**json.loads(row["record"]), "seq": seq})
    found.append(row)


def _push_in(chance: random.Random, found: list[Row]) -> None:
    """A row between others, which are numbered anew."""
    place = chance.randrange(len(found))
    found.insert(place, {"seq": place + 1, **_forged(chance, found)})
    for i, row in enumerate(found[place:], place + 1):
        row["seq"] = i
        row["record"] = to_json({**json.loads(row["record"]), "seq": i})


def _delete(chance: random.Random, found: list[Row]) -> None:
    del found[chance.randrange(len(found))]


def _swap(chance: random.Random, found: list[Row]) -> None:
    one, other = chance.sample(found, 2)
    one["record"], other["record"] = other["record"], one["record"]


def _edit(chance: random.Random, found: list[Row]) -> None:
    row = chance.choice(found)
    record = json.loads(row["record"])
    field = chance.choice(sorted(set(record) - {"seq", "detail"}))
    record[field] = chance.choice(["x", None, 7, "2020-01-01T00:00:00.000000+00:00", ["registered"]])
    row["record"] = to_json(record)


def _rewrite(chance: random.Random, found: list[Row]) -> None:
    """All that a thorough forger can: every event, and the columns beside it."""
    for row in found:
        record = {**json.loads(row["record"]), "who": "nobody"}
        row["record"] = to_json(record)


def _column(chance: random.Random, found: list[Row]) -> None:
    column = chance.choice(["at", "hash", "seq"])
    row = chance.choice(found)
    row[column] = chance.choice(SEQS) + 1_000 if column == "seq" else "x"


MUTATIONS: tuple[Mutation, ...] = (_insert, _push_in, _delete, _swap, _edit, _rewrite, _column)


def _rehash(found: list[Row]) -> None:
    before = FIRST
    for row in sorted(found, key=lambda row: row["seq"]):
        before = row["hash"] = sha256(f"{before}{row['record']}")


def _apply(connection: Connection, after: list[Row]) -> None:
    connection.execute(text("DELETE FROM catalog_history"))
    connection.execute(text("INSERT INTO catalog_history VALUES (:seq, :at, :name, :record, :hash)"), after)


@pytest.mark.parametrize("part", spread(range(2), 2))
def test_every_mutation_is_named(catalog: StoredCatalog, catalog_url: str, part: int) -> None:
    """Rows put in front, behind or between, deleted, swapped, edited, with hashes that fit or do not, and each head."""
    anchor = catalog.check_history()[:2]
    rounds = 60 if catalog_url.startswith("sqlite") else 20
    with catalog.database.writer().database.reading() as connection:
        found = connection.execute(text("SELECT seq, at, name, record, hash FROM catalog_history ORDER BY seq"))
        before: list[Row] = [dict(row._mapping) for row in found]
        head: Any = connection.execute(text("SELECT * FROM catalog_head")).one()
        connection.rollback()
        for i in range(rounds):
            chance = random.Random(f"{part} {i}")
            after = [dict(row) for row in before]
            for mutation in chance.sample(MUTATIONS, chance.choice([1, 1, 2])):
                mutation(chance, after)
            if chance.random() < 0.6:
                _rehash(after)
            if after == before or len({row["seq"] for row in after}) < len(after):
                continue  # an edit that says what was there, or one that no table takes
            _apply(connection, after)
            is_head_left = chance.random() < 0.6
            if not is_head_left:  # as the forger would have it
                last = max(after, key=lambda row: row["seq"])
                connection.execute(
                    text("UPDATE catalog_head SET length = :length, hash = :hash"),
                    {"length": len(after), "hash": last["hash"]},
                )
            result = check(connection)
            connection.rollback()
            told = f"{part} {i}: {result}"
            assert result.flaws or (result.length, result.hash) != anchor, told
            assert result.flaws or not is_head_left, told
        for statement in (
            "UPDATE catalog_head SET length = length + 1",
            "UPDATE catalog_head SET length = length - 1",
            "UPDATE catalog_head SET length = -1",
            f"UPDATE catalog_head SET hash = '{FIRST}'",
            "UPDATE catalog_head SET revision = 0",
            "DELETE FROM catalog_head",
            f"INSERT INTO catalog_head VALUES (7, {head.revision}, {head.length}, '{head.hash}')",
        ):
            connection.execute(text(statement))
            assert check(connection).flaws, statement
            connection.rollback()
        assert check(connection).flaws == []


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)  # which keeps any value in any column
@pytest.mark.parametrize(
    "value", ["x'00ff'", "1.5", "''", "'\u00e9'", "x''", "9223372036854775807", "'{\"seq\": 3}'", "'[' || '1' || ']'"]
)
def test_values_of_a_wrong_kind_are_named(catalog: StoredCatalog, catalog_url: str, value: str) -> None:
    """In any column of any table: the check says so and does not end with an error of another kind."""
    columns = {
        "catalog_history": ("at", "name", "record", "hash"),
        "catalog_versions": ("name", "number", "model_type", "facts", "sha256"),
        "catalog_names": ("newest", "current"),
        "catalog_aliases": ("alias", "guarded"),
        "catalog_head": ("revision", "length", "hash"),
    }
    catalog.check_history()
    with catalog.database.writer().database.reading() as connection:
        for table, names in columns.items():
            for column in names:
                connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
                connection.exec_driver_sql(f"UPDATE {table} SET {column} = {value} WHERE rowid = 1")
                assert check(connection).flaws, (table, column)
                connection.rollback()


def test_a_clock_that_is_behind_is_noted(catalog: StoredCatalog, catalog_url: str) -> None:
    """Events stay in the order of their times, as another machine's clock may be ahead of this one's."""
    found = catalog.history()
    ahead = to_json({**found[-1].to_dict(), "at": "2999-01-01T00:00:00.000000+00:00"})
    last = sha256(_hash_before_last(catalog_url) + ahead)
    change(
        catalog_url,
        f"UPDATE catalog_history SET at = '2999-01-01T00:00:00.000000+00:00', record = '{ahead}', hash = '{last}'"
        f" WHERE seq = {found[-1].seq}",
        f"UPDATE catalog_head SET hash = '{last}'",
    )
    assert catalog.check_history()[2] == []
    catalog.tag("m0", add={"later": None})
    event = catalog.history()[-1]
    assert event.at == "2999-01-01T00:00:00.000000+00:00" and found[-1].at < event.detail["clock"] < event.at
    assert catalog.check_history()[2] == []


def _hash_before_last(url: str) -> str:
    return str(rows(url, "catalog_history", "seq")[-2]["hash"])

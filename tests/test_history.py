"""The history on both databases: what was done to it, or to the entries behind its back, is found and named."""

import json
from collections.abc import Callable

import pytest

from medvllm.catalog import StoredCatalog
from medvllm.catalog.sql.check import check
from medvllm.catalog.sql.history import FIRST
from medvllm.catalog.sql.texts import sha256, to_json
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError
from tests.support.spread import spread
from tests.support.sql import Row, change, rows

Rewrite = Callable[[list[Row]], None]


@pytest.fixture
def catalog(catalog_url: str, registry: ModelRegistry) -> StoredCatalog:
    """A catalogue with eight events: it was made; three versions, a mark, a protected alias, and one removed."""
    for text in ("a", "b", "c"):
        registry.register("m", "clinical", description=text, also_known_as=["acme/m"], persist=True, replace=True)
    catalog = registry.catalog
    catalog.set_alias("m", "production", 1)
    StoredCatalog().protect("m", "production")  # nobody asks what it lacks
    catalog.update("m@2", deprecated="old")
    registry.unregister("m@3", persist=True)
    assert catalog.check_history()[0] == 8 and catalog.check_history()[2] == []
    return catalog


def _unlock(url: str) -> None:
    """Take the triggers away, as whoever owns the tables can."""
    if url.startswith("postgresql"):
        change(url, "DROP TRIGGER catalog_history_kept ON catalog_history")
    else:
        change(url, "DROP TRIGGER catalog_history_UPDATE", "DROP TRIGGER catalog_history_DELETE")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE catalog_history SET record = '{}' WHERE seq = 2",
        "DELETE FROM catalog_history WHERE seq = 2",
        "DELETE FROM catalog_history",
    ],
)
def test_rows_can_only_be_added(catalog: StoredCatalog, catalog_url: str, statement: str) -> None:
    """The database itself refuses the rest."""
    with pytest.raises(Exception, match="the history can only be added to"):
        change(catalog_url, statement)
    if catalog_url.startswith("postgresql"):
        with pytest.raises(Exception, match="the history can only be added to"):
            change(catalog_url, "TRUNCATE catalog_history")
    assert catalog.check_history()[2] == []


BY_NAME = "version 1 of 'm' is not what its events say"
CHANGES = [
    (
        'UPDATE catalog_history SET record = replace(record, \'"reason":null\', \'"reason":"x"\') WHERE seq = 3',
        "event 3 is not what was written after event 2",
    ),
    ("UPDATE catalog_history SET at = '2020' WHERE seq = 3", "event 3 is not what was written, or not where"),
    ("UPDATE catalog_history SET name = 'n' WHERE seq = 3", "event 3 is not what was written, or not where"),
    ("UPDATE catalog_history SET hash = 'x' WHERE seq = 3", "event 3 is not what was written after event 2"),
    ("UPDATE catalog_history SET hash = 'x' WHERE seq = 8", "event 8 is not what was written after event 7"),
    ("UPDATE catalog_history SET record = 'x' WHERE seq = 3", "event 3 is not what was written, or not where"),
    ("UPDATE catalog_history SET record = '[1]' WHERE seq = 3", "event 3 is not what was written, or not where"),
    ("UPDATE catalog_history SET record = '' WHERE seq = 3", "event 3 is not what was written, or not where"),
    (
        "UPDATE catalog_history SET record = replace(record, 'null', ' null') WHERE seq = 3",
        "event 3 is not what was written, or not where",
    ),
    ("UPDATE catalog_history SET seq = 99 WHERE seq = 3", "event 3 is missing"),
    ("UPDATE catalog_history SET seq = 99 WHERE seq = 8", "events 8 to 98 are missing"),
    ("DELETE FROM catalog_history WHERE seq = 1", "event 1 is missing"),
    ("DELETE FROM catalog_history WHERE seq = 4", "event 4 is missing"),
    ("DELETE FROM catalog_history WHERE seq = 8", "event 8 is missing"),
    ("DELETE FROM catalog_history WHERE seq > 2", "events 3 to 8 are missing"),
    ("UPDATE catalog_history SET seq = 2000000000000 WHERE seq = 8", "events 8 to 1999999999999 are missing"),
    ("UPDATE catalog_head SET length = 2000000000000", "events 9 to 2000000000000 are missing"),
    (
        "INSERT INTO catalog_history SELECT 9, at, name, record, hash FROM catalog_history WHERE seq = 8",
        "event 9 is not what was written, or not where",
    ),
    (
        "INSERT INTO catalog_history SELECT 10, at, name, record, hash FROM catalog_history WHERE seq = 8",
        "event 9 is missing",
    ),
    ("UPDATE catalog_head SET length = 7", "the history ends with event 8"),
    ("UPDATE catalog_head SET length = 9", "event 9 is missing"),
    ("UPDATE catalog_head SET hash = 'x'", "the history ends with event 8"),
    (
        "UPDATE catalog_head SET revision = revision - 1",
        "the change number of the catalogue is 8",
    ),
    ("UPDATE catalog_head SET revision = 10", "the change number of the catalogue is 10"),
    ("DELETE FROM catalog_head", "the catalogue has no rows that say where the history ends"),
    (
        "INSERT INTO catalog_head SELECT 2, revision, length, hash FROM catalog_head",
        "the catalogue has 2 rows that say where the history ends",
    ),
    (
        "INSERT INTO catalog_history SELECT 0, at, name, record, hash FROM catalog_history WHERE seq = 2",
        "row 0 stands before the first event",
    ),
    (
        "INSERT INTO catalog_history SELECT -9223372036854775807, at, name, record, hash FROM catalog_history"
        " WHERE seq = 2",
        "row -9223372036854775807 stands before the first event",
    ),
    ("UPDATE catalog_versions SET facts = replace(facts, '\"a\"', '\"x\"') WHERE number = 1", BY_NAME),
    ("UPDATE catalog_versions SET sha256 = 'x' WHERE number = 1", BY_NAME),
    ("UPDATE catalog_versions SET model_type = 'generic' WHERE number = 1", BY_NAME),
    ("DELETE FROM catalog_versions WHERE number = 2", "version 2 of 'm' is missing"),
    (
        "INSERT INTO catalog_versions SELECT name, 9, model_type, facts, sha256 FROM catalog_versions WHERE number = 1",
        "version 9 of 'm' is not what its events say",
    ),
    ("UPDATE catalog_aliases SET number = 2", "alias 'production' of 'm' is not what its events say"),
    ("UPDATE catalog_aliases SET number = NULL", "alias 'production' of 'm' is not what its events say"),
    ("UPDATE catalog_aliases SET guarded = false", "alias 'production' of 'm' is not what its events say"),
    ("UPDATE catalog_aliases SET alias = 'other'", "alias 'other' of 'm' is not what its events say"),
    ("DELETE FROM catalog_aliases", "alias 'production' of 'm' is missing"),
    ("UPDATE catalog_names SET current = 1", "the version that 'm' means is not what its events say"),
    ("UPDATE catalog_names SET current = NULL", "the version that 'm' means is not what its events say"),
    ("UPDATE catalog_names SET newest = 2", "the version that 'm' means is not what its events say"),
    ("INSERT INTO catalog_names VALUES ('n', 1, NULL)", "the version that 'n' means is not what its events say"),
    (
        "DELETE FROM catalog_other_names WHERE number = 2",
        "the other names of version 2 of 'm' are not what its events say",
    ),
    (
        "UPDATE catalog_other_names SET other = 'acme/x' WHERE number = 1",
        "the other names of version 1 of 'm' are not what its events say",
    ),
]


def test_what_is_done_behind_its_back_is_named(catalog: StoredCatalog, catalog_url: str) -> None:
    """Events, entries, aliases, and what a bare name means: each in a transaction that is undone afterwards."""
    _unlock(catalog_url)
    catalog.history()
    with catalog.database.writer().database.reading() as connection:
        for statement, flaw in CHANGES:
            connection.exec_driver_sql(statement)
            found = check(connection).flaws
            assert any(said.startswith(flaw) for said in found), (statement, found)
            connection.rollback()
    assert catalog.check_history()[2] == []


def _rehash(found: list[Row], start: int = 0) -> None:
    """Make all hashes fit again, from an event on."""
    before = found[start - 1]["hash"] if start else FIRST
    for row in found[start:]:
        before = row["hash"] = sha256(before + row["record"])


def _reordered(found: list[Row]) -> None:
    found[2]["record"], found[3]["record"] = found[3]["record"], found[2]["record"]
    _rehash(found)


def _renumbered(found: list[Row]) -> None:
    """Two events change places, as if they had been written so."""
    records = [json.loads(row["record"]) for row in found]
    records[2], records[3] = {**records[3], "seq": 3}, {**records[2], "seq": 4}
    for row, record in zip(found, records, strict=True):
        row.update(record=to_json(record), at=record["at"])
    _rehash(found)


def _cut(found: list[Row]) -> None:
    del found[-1]


def _edited(found: list[Row]) -> None:
    record = json.loads(found[6]["record"])
    record["detail"]["facts"]["deprecated"] = "something else"
    found[6]["record"] = to_json(record)
    _rehash(found)


def _nonsense(found: list[Row]) -> None:
    record = json.loads(found[1]["record"])
    found[1]["record"] = to_json({**record, "detail": {"facts": 5}})
    _rehash(found)


def _no_detail(found: list[Row]) -> None:
    record = json.loads(found[1]["record"])
    found[1]["record"] = to_json({**record, "detail": {}})
    _rehash(found)


def _not_a_number(found: list[Row]) -> None:
    found[1]["record"] = found[1]["record"].replace('"description":"a"', '"description":NaN')
    _rehash(found)


def _with(**fields: object) -> Rewrite:
    def rewrite(found: list[Row]) -> None:
        record = {**json.loads(found[3]["record"]), **fields}
        found[3].update(record=to_json(record), at=record["at"])
        _rehash(found)

    return rewrite


_earlier = _with(at="2020-01-01T00:00:00.000000+00:00")
_timeless = _with(at="yesterday")
_unknown = _with(action="approved")


def _in_front(found: list[Row]) -> None:
    """A row that no hash binds, and all events rewritten, with hashes that fit."""
    found.insert(0, {**found[0], "seq": 0, "hash": FIRST})
    record = json.loads(found[3]["record"])
    found[3]["record"] = to_json({**record, "who": "somebody else"})
    _rehash(found, 1)


@pytest.mark.parametrize(
    ("rewrite", "flaw"),
    spread(
        [
            (_reordered, "event 3 is not what was written, or not where"),
            (_renumbered, "the history ends with event 8, and the catalogue was last changed by another"),
            (_cut, "event 8 is missing"),
            (_edited, "version 2 of 'm' is not what its events say"),
            (_nonsense, "event 2 is not what was written, or not where"),
            (_no_detail, "event 2 is not what was written, or not where"),
            (_not_a_number, "event 2 is not what was written, or not where"),
            (_earlier, "event 4 is earlier than the one before it"),
            (_timeless, "event 4 has no time"),
            (_unknown, "event 4 has an unknown action: 'approved'"),
            (_in_front, "row 0 stands before the first event"),
            (_in_front, "the history ends with event 8, and the catalogue was last changed by another"),
        ],
        2,
    ),
)
def test_a_history_written_anew_is_named_too(
    catalog: StoredCatalog, catalog_url: str, rewrite: Rewrite, flaw: str
) -> None:
    """With hashes that fit: the catalogue's own last hash and its entries do not."""
    _unlock(catalog_url)
    found = rows(catalog_url, "catalog_history", "seq")
    rewrite(found)
    change(catalog_url, "DELETE FROM catalog_history")
    change(catalog_url, *(("catalog_history", row) for row in found))
    assert flaw in catalog.check_history()[2]


def test_all_of_it_written_anew_is_noticed_by_the_number_and_hash_kept_elsewhere(
    catalog: StoredCatalog, catalog_url: str
) -> None:
    """Whoever can write everything can make everything fit: the anchor then differs."""
    _unlock(catalog_url)
    anchor = catalog.check_history()[:2]
    found = rows(catalog_url, "catalog_history", "seq")
    record = json.loads(found[1]["record"])
    found[1]["record"] = to_json({**record, "who": "somebody else"})
    _rehash(found)
    change(catalog_url, "DELETE FROM catalog_history")
    change(catalog_url, *(("catalog_history", row) for row in found))
    change(catalog_url, f"UPDATE catalog_head SET hash = '{found[-1]['hash']}'")
    number, last, wrong = catalog.check_history()
    assert wrong == [] and (number, last) != anchor and number == anchor[0]


def test_a_damaged_event_is_an_error_of_the_listing(catalog: StoredCatalog, catalog_url: str) -> None:
    """It names the event, and what tells more."""
    _unlock(catalog_url)
    change(catalog_url, "UPDATE catalog_history SET record = 'x' WHERE seq = 3")
    with pytest.raises(CatalogError, match="event 3 is not what was written(?s:.*)medvllm history verify"):
        catalog.history()


def test_a_long_history_that_nobody_touched_is_clean(catalog_url: str, registry: ModelRegistry) -> None:
    """Of a few hundred events of every kind; it ends where it says."""
    catalog = registry.catalog
    for i in range(50):
        name = f"m{i % 7}"
        number = registry.register(name, "clinical", description=f"{i} é", persist=True, replace=True).version
        catalog.set_alias(name, "production", number)
        catalog.tag(name, add={f"t{i}": None, "k": str(i)})
        catalog.set_alias(name, "default", number)
        if i % 3 == 0:
            catalog.remove_alias(name, "default")
            catalog.protect(name, f"g{i}")
            catalog.protect(name, f"g{i}", False, reason="no longer")
        if i % 5 == 0:
            registry.unregister(f"{name}@{number}", persist=True, force=True)
            if i % 10 == 0 and catalog.versions(name):
                registry.unregister(name, persist=True, force=True)
    number, last, wrong = catalog.check_history()
    events = catalog.history()
    assert wrong == [] and number == len(events) == events[-1].seq > 250
    assert rows(catalog_url, "catalog_history", "seq")[-1]["hash"] == last
    assert {event.action for event in events} == {
        *("created", "registered", "changed", "unregistered", "aliased", "unaliased", "protected", "unprotected")
    }

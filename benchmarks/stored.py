"""The stored catalogue with 100,000 entries in SQLite, beside hand-written SQL on the same file."""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Series, Table, beside, duration, interleaved, timed
from medvllm.catalog import Catalog, StoredCatalog
from medvllm.engine.model_runner import ModelMetadata, ModelRegistry

if TYPE_CHECKING:
    from medvllm.catalog.sql import SqlStore

COUNT = 100_000
NAMES = [f"hospital-{i % 100:02}/model-{i:06}" for i in range(COUNT)]
_LOOKED_UP = NAMES[:: COUNT // 1000]  # each has two versions and an alias
_CHANGED = NAMES[1]
_TYPES = ("generic", "biomedical", "clinical", "custom")
_LICENSES = ("apache-2.0", "mit", "cc-by-nc-4.0")
GLOB, _MIDDLE, PAGE = "*model-0999*", "hospital-50/model-050050", 50

_COLD, _KNOWN, _REVISION = "`get_metadata`, 1,000 names", "the same, remembered", "has it changed? 1,000 times"
_ALL, _FIRST, _LATER = "`list_models()`", f"`list_models(limit={PAGE})`", f"`list_models(after=…, limit={PAGE})`"
_REGISTER, _MOVE = "`register(…, replace=True, persist=True)`", "`set_alias`"
_EMPTY, _TEN, _HELP, _SCRIPT = (
    "`medvllm list`, no database",
    "`medvllm list`, 10 stored entries",
    "`medvllm list --help`",
    "a script that reads the 10 with sqlite3 and prints them",
)

CURRENT = "catalog_names n JOIN catalog_versions v ON v.name = n.name AND v.number = n.current"
_ENTRY = f"SELECT v.number, v.facts FROM {CURRENT} WHERE v.name = ?"
_NUMBERED = "SELECT number, facts FROM catalog_versions WHERE name = ? AND number = 2"
_POINTED_TO = (
    "SELECT v.number, v.facts FROM catalog_aliases a JOIN catalog_versions v ON v.name = a.name "
    "AND v.number = a.number WHERE a.name = ? AND a.alias = 'production'"
)
_LISTED = f"SELECT v.name, v.number, v.facts FROM {CURRENT} WHERE %s ORDER BY v.name"
_TAGGED = "EXISTS (SELECT 1 FROM json_each(v.facts, '$.tags') WHERE value = '%s')"

_Pair = tuple[str, Callable[[], float], str, Callable[[], float]]  # ours and the peer, each by its name


def tables(quick: bool) -> list[Table]:
    """Measure look-up, listing, change and whole processes."""
    from medvllm.catalog.sql import SqlStore

    runs = 1 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        file, other = Path(folder) / "catalog.db", Path(folder) / "other.db"
        build_entries(SqlStore(file))
        with _opened(file) as connection:
            connection.execute("VACUUM INTO ?", (str(other),))
            found = [_looking_up(file, connection, runs), _listing(file, connection, runs)]
        with _opened(other) as connection:
            found.append(_changing(file, connection, 10 * runs))
        return [*found, _processes(Path(folder), runs)]


def _facts(i: int) -> dict[str, Any]:
    return {
        "description": "An entry.",
        "tags": ["en", f"ward-{i % 50}"],
        "task": "embed" if i % 2 else "fill-mask",
        "license": _LICENSES[i % 3],
        "model_path": f"hospital/model-{i}",
    }


def build_entries(store: "SqlStore") -> None:
    """Register the entries, some of them with two versions and an alias."""
    with store.transaction() as transaction:
        for i, name in enumerate(NAMES):
            transaction.register(name, ModelMetadata.build(name, _TYPES[i % 4], _facts(i)).facts())
        for name in (*_LOOKED_UP, _CHANGED):
            transaction.register(name, ModelMetadata.build(name, "custom", {**_facts(0), "revision": "v2"}).facts())
            transaction.set_alias(name, "production", 1)


def _registry(file: Path) -> ModelRegistry:
    """Return a registry that has looked nothing up yet; the database is open."""
    registry = ModelRegistry(Catalog(StoredCatalog(file)))
    registry.get_metadata(_MIDDLE)
    return registry


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        yield connection


def _measured(pairs: list[_Pair], runs: int) -> tuple[dict[str, Series], dict[str, str]]:
    steps: dict[str, Callable[[], float]] = {}
    for ours, own, peer, theirs in pairs:
        steps |= {ours: own, peer: theirs}
    return interleaved(steps, runs), {ours: peer for ours, _, peer, _ in pairs}


def _looking_up(file: Path, connection: sqlite3.Connection, runs: int) -> Table:
    known = _registry(file)

    def ours(suffix: str = "") -> float:
        registry = _registry(file)
        return timed(lambda: [registry.get_metadata(name + suffix) for name in _LOOKED_UP])

    def theirs(query: str) -> float:
        return timed(lambda: [json.loads(connection.execute(query, (name,)).fetchone()[1]) for name in _LOOKED_UP])

    remembered = {name: json.loads(connection.execute(_ENTRY, (name,)).fetchone()[1]) for name in _LOOKED_UP}
    watch = "PRAGMA data_version"
    pairs: list[_Pair] = [
        (_COLD, ours, "sqlite3, 1,000 names", partial(theirs, _ENTRY)),
        (
            _KNOWN,
            partial(timed, lambda: [known.get_metadata(name) for name in _LOOKED_UP]),
            "dict look-up, 1,000 names",
            partial(timed, lambda: [remembered[name] for name in _LOOKED_UP]),
        ),
        ('`get_metadata("…@2")`, 1,000 names', partial(ours, "@2"), "sqlite3: version", partial(theirs, _NUMBERED)),
        (
            '`get_metadata("…@production")`, 1,000 names',
            partial(ours, "@production"),
            "sqlite3: alias",
            partial(theirs, _POINTED_TO),
        ),
        (
            _REVISION,
            partial(timed, lambda: [known.catalog.database.change_token() for _ in range(1000)]),
            f"sqlite3: `{watch}`, 1,000 times",
            partial(timed, lambda: [connection.execute(watch).fetchone() for _ in range(1000)]),
        ),
    ]
    series, peers = _measured(pairs, 2 * runs + 1)
    reading = (
        f"A name's first look-up takes {duration(series[_COLD].median / 1000)}, every later one "
        f"{duration(series[_KNOWN].median / 1000)}: what was found is remembered until the catalogue changes.\n"
        f"Whether it has changed, in whichever process, is asked each time, and takes "
        f"{duration(series[_REVISION].median / 1000)} of that."
    )
    return Table(f"Looking up one of {COUNT:,} stored entries", beside(series, peers), reading, duration)


def _listing(file: Path, connection: sqlite3.Connection, runs: int) -> Table:
    registry = _registry(file)

    def pair(ours: str, peer: str, where: str = "1", limit: int | None = None, **filters: Any) -> _Pair:
        query = _LISTED % where + (f" LIMIT {limit}" if limit else "")

        def theirs() -> object:
            return {name: json.loads(facts) for name, _, facts in connection.execute(query)}

        return (
            ours,
            partial(timed, partial(registry.list_models, limit=limit, **filters)),
            f"sqlite3: {peer}",
            partial(timed, theirs),
        )

    tagged = " AND ".join(_TAGGED % tag for tag in ("en", "ward-7"))
    task = "(v.facts ->> '$.task' = 'embed' OR v.facts ->> '$.pooling' IS NOT NULL)"
    pairs = [
        pair(_ALL, "all"),
        pair('`list_models("clinical")`', "type", "v.model_type = 'clinical'", model_type="clinical"),
        pair('`list_models(task="embed")`', "task", task, task="embed"),
        pair('`list_models(tags=["en", "ward-7"])`', "tags", tagged, tags=["en", "ward-7"]),
        pair(
            '`list_models(license="apache*")`', "licence", "v.facts ->> '$.license' LIKE 'apache%'", license="apache*"
        ),
        pair(f'`list_models(match="{GLOB}")`', "glob", f"v.name GLOB '{GLOB}'", match=GLOB),
        pair(_FIRST, "first page", limit=PAGE),
        pair(_LATER, "page in the middle", f"v.name > '{_MIDDLE}'", PAGE, after=_MIDDLE),
    ]
    series, peers = _measured(pairs, runs)
    reading = (
        f"A listing of everything takes {duration(series[_ALL].median)}, and makes {COUNT:,} entries, each checked "
        "against its digest; the peer's are dicts.\n"
        f"A page takes {duration(series[_FIRST].median)}, also in the middle: {duration(series[_LATER].median)}."
    )
    return Table(f"Listing {COUNT:,} stored entries", beside(series, peers), reading, duration)


def _changing(file: Path, connection: sqlite3.Connection, runs: int) -> Table:
    registry, number = _registry(file), count(3)

    def ours() -> object:
        return registry.register(_CHANGED, "custom", replace=True, persist=True, revision=f"v{next(number)}")

    def theirs() -> None:
        connection.execute("BEGIN IMMEDIATE")
        (newest,) = connection.execute("SELECT newest FROM catalog_names WHERE name = ?", (_CHANGED,)).fetchone()
        row = (_CHANGED, newest + 1, "custom", json.dumps({"model_type": "custom", "revision": f"v{newest}"}), "")
        connection.execute("INSERT INTO catalog_versions VALUES (?, ?, ?, ?, ?)", row)
        new = (newest + 1, newest + 1, _CHANGED)
        connection.execute("UPDATE catalog_names SET newest = ?, current = ? WHERE name = ?", new)
        connection.execute("COMMIT")

    def move() -> object:
        return registry.catalog.set_alias(_CHANGED, "production", next(number) % 2 + 1)

    def update() -> object:
        change = "UPDATE catalog_aliases SET number = ? WHERE name = ? AND alias = 'production'"
        return connection.execute(change, (next(number) % 2 + 1, _CHANGED))

    pairs: list[_Pair] = [
        (_REGISTER, partial(timed, ours), "sqlite3: a version", partial(timed, theirs)),
        (_MOVE, partial(timed, move), "sqlite3: an alias", partial(timed, update)),
    ]
    series, peers = _measured(pairs, runs)
    reading = (
        f"One more version takes {duration(series[_REGISTER].median)}, and moving an alias "
        f"{duration(series[_MOVE].median)}, with the event in the history.\n"
        "The peer keeps no history and no digest. Both wait until the change is on the disk."
    )
    return Table(f"Changing one of {COUNT:,} stored entries", beside(series, peers), reading, duration)


def _processes(folder: Path, runs: int) -> Table:
    ten = folder / "ten" / "catalog.db"
    StoredCatalog(ten).create()
    for i in range(10):
        entry = ModelMetadata.build(NAMES[i], "custom", _facts(i))
        StoredCatalog(ten).add(entry, replace=False)
    script = (
        f"import json, sqlite3\nfor row in sqlite3.connect({str(ten)!r}).execute({_LISTED % '1'!r}):\n"
        "    print(row[0], json.loads(row[2])['description'], sep='\\t')"
    )
    listing = ("-m", "medvllm.cli", "list")
    steps: dict[str, Callable[[], float]] = {
        _EMPTY: partial(timed, partial(_run, folder / "none", listing)),
        _TEN: partial(timed, partial(_run, ten.parent, listing)),
        _HELP: partial(timed, partial(_run, ten.parent, (*listing, "--help"))),
        "`python -c 'import sqlalchemy'`": partial(timed, partial(_run, ten.parent, ("-c", "import sqlalchemy"))),
        _SCRIPT: partial(timed, partial(_run, ten.parent, ("-c", script))),
    }
    series = interleaved(steps, 2 * runs + 1)
    rows = beside(series, dict.fromkeys((name for name in steps if name != _SCRIPT), _SCRIPT))
    more = duration(series[_TEN].median - series[_EMPTY].median)
    reading = (
        f"While there is no database, a listing imports nothing for it; the first stored entry makes it {more} longer. "
        "It reads the file with Python's sqlite3, without SQLAlchemy."
    )
    return Table("Listing stored entries, whole processes", rows, reading, duration)


def _run(home: Path, arguments: tuple[str, ...]) -> None:
    environment = {**os.environ, "MEDVLLM_HOME": str(home)}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)

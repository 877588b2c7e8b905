"""Schemas of the stored catalogue: upgrades keep what there is, and what is newer or another's is left alone."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from medvllm.catalog import StoredCatalog, stores
from medvllm.catalog.sql import SqlStore, schema, tables
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError, MigrationError
from tests.support.children import together
from tests.support.console import command
from tests.support.postgres import Postgres
from tests.support.spread import spread
from tests.support.sql import change, rows

TABLES = {
    "catalog_names": "name",
    "catalog_versions": "name, number",
    "catalog_other_names": "other, name, number",
    "catalog_aliases": "name, alias",
    "catalog_history": "seq",
}


@pytest.fixture
def old(catalog_url: str, registry: ModelRegistry, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database as the first schema has it, with entries, an alias and their history in it."""
    registry.register("m", "clinical", description="a é", also_known_as=["acme/m"], persist=True)
    registry.register("m", "clinical", description="b", also_known_as=["acme/m"], persist=True, replace=True)
    registry.catalog.set_alias("m", "production", 1)
    made = {table: rows(catalog_url, table, order) for table, order in TABLES.items()}
    head = rows(catalog_url, "catalog_head", "id")[0]

    def fill(url: str) -> str:
        SqlStore(url if url.startswith("postgresql") else Path(url.removeprefix("sqlite:///"))).database.migrate("0001")
        for row in made["catalog_aliases"]:
            del row["guarded"]
        change(url, "DELETE FROM catalog_head", ("catalog_head", head))
        change(url, *((table, row) for table, found in made.items() for row in found))
        return url

    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    if catalog_url.startswith("sqlite"):
        monkeypatch.setenv("MEDVLLM_CATALOG", str(tmp_path / "old.db"))
        yield fill(f"sqlite:///{tmp_path / 'old.db'}")
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database() as url:
        monkeypatch.setenv("MEDVLLM_CATALOG", url)
        yield fill(url)


def _schema(url: str) -> str:
    return str(rows(url, "catalog_schema", "version_num")[0]["version_num"])


def _check(registry: ModelRegistry) -> None:
    """All that the old database had is there, and the history accounts for it."""
    assert [registry.get_metadata(name).version for name in ("m", "m@production", "acme/m@1")] == [2, 1, 1]
    assert registry.get_metadata("m@1").description == "a é"
    assert registry.catalog.check_history()[2] == []
    assert registry.register("m", "clinical", description="c", persist=True, replace=True).version == 3
    registry.catalog.protect("m", "later")


def test_the_embedded_one_is_upgraded_when_it_is_opened(
    old: str, registry: ModelRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    """With a backup beside it that opens and has the old data. A server's is upgraded when that is asked."""
    if old.startswith("postgresql"):
        looks: tuple[Callable[[], object], ...] = (
            lambda: registry.get_metadata("m"),
            lambda: registry.register("n", "generic", persist=True),
        )
        for look in looks:
            with pytest.raises(MigrationError, match="has the schema '0001', .*'0004'.\nRun: medvllm catalog mi"):
                look()
        assert _schema(old) == "0001"
        assert registry.catalog.migrate() == ("0001", None)
        assert registry.catalog.migrate() == ("0004", None)
    before = rows(old, "catalog_history", "seq")
    if old.startswith("sqlite"):
        Path(old.removeprefix("sqlite:///")).chmod(0o600)
    _check(registry)
    assert _schema(old) == "0004"
    assert [event.action for event in registry.catalog.history()].count("migrated") == 1
    if old.startswith("sqlite"):
        file = Path(old.removeprefix("sqlite:///"))
        (backup,) = file.parent.glob("old.db.*.backup")
        assert f"Catalogue {file} was migrated from schema 0001. The backup is {backup}" in caplog.text
        assert backup.stat().st_mode & 0o777 == 0o600  # what is hidden stays so
        assert (
            rows(f"sqlite:///{backup}", "catalog_history", "seq") == before and _schema(f"sqlite:///{backup}") == "0001"
        )
        shutil.copyfile(backup, file.with_name("restored.db"))
        restored = StoredCatalog(file.with_name("restored.db"))
        assert restored.find("m") is not None and restored.check_history()[2] == []


def test_an_empty_server_is_not_filled_unasked(postgres: Postgres, registry: ModelRegistry) -> None:
    """It says what to run; tables of others beside it are left alone."""
    with postgres.database() as url:
        change(url, "CREATE TABLE theirs (a integer)", "INSERT INTO theirs VALUES (1)")
        catalog = StoredCatalog(url)
        for look in (catalog.names, catalog.export, lambda: catalog.protect("m", "production")):
            with pytest.raises(
                MigrationError, match="is empty, but this program needs '0004'.\nRun: medvllm catalog init"
            ):
                look()
        assert catalog.create() and not catalog.create() and catalog.names() == []
        assert rows(url, "theirs", "a") == [{"a": 1}]
        stores.close_all()


def test_down_and_up_again_keeps_the_data(catalog_url: str, registry: ModelRegistry) -> None:
    """The history says when and by whom; protected aliases, which the older schema does not know, are in the way."""
    registry.register("m", "clinical", description="a é", also_known_as=["acme/m"], persist=True)
    registry.register("m", "clinical", description="b", also_known_as=["acme/m"], persist=True, replace=True)
    registry.catalog.set_alias("m", "production", 1)
    registry.catalog.protect("m", "later")
    before = registry.catalog.export(), registry.catalog.history()
    with pytest.raises(
        MigrationError,
        match="'0001' has no protected .* has 1: .*\n.*:\n  medvllm alias unprotect m later --reason",
    ):
        registry.catalog.migrate("0001")
    assert (registry.catalog.export(), registry.catalog.history()) == before and _schema(catalog_url) == schema.HEAD
    registry.catalog.protect("m", "later", False, reason="an older program")
    for _ in range(2):
        left, backup = registry.catalog.migrate("0001")
        assert left == "0004" and (backup is not None) == catalog_url.startswith("sqlite")
        assert _schema(catalog_url) == "0001"
        assert registry.catalog.migrate()[0] == "0001"
        assert [(a.alias, a.version, a.protected) for a in registry.catalog.aliases()] == [("production", 1, False)]
        assert registry.catalog.check_history()[2] == []
        assert [(event.action, event.detail) for event in registry.catalog.history()[-2:]] == [
            ("migrated", {"from": schema.HEAD, "to": "0001"}),
            ("migrated", {"from": "0001", "to": schema.HEAD}),
        ]
    _check(registry)
    with pytest.raises(MigrationError, match="'0009' is not known.* 0001, 0002, 0003, 0004"):
        registry.catalog.migrate("0009")


def test_a_newer_schema_is_left_alone(catalog_url: str, registry: ModelRegistry) -> None:
    """Of a program that is not there yet: neither read, written nor migrated, and it says so."""
    registry.register("m", "clinical", persist=True)
    stores.close_all()
    change(
        catalog_url,
        "ALTER TABLE catalog_versions ADD COLUMN more TEXT",
        "UPDATE catalog_schema SET version_num = '9999'",
    )
    before = {table: rows(catalog_url, table, order) for table, order in TABLES.items()}
    for act in (
        lambda: registry.get_metadata("m"),
        registry.list_models,
        registry.catalog.export,
        registry.catalog.check_history,
        lambda: registry.register("n", "clinical", persist=True),
        registry.catalog.migrate,
        lambda: registry.catalog.migrate("0001"),
    ):
        with pytest.raises(
            MigrationError,
            match="has the schema '9999', but this program knows none after '0004'",
        ):
            act()
    assert {table: rows(catalog_url, table, order) for table, order in TABLES.items()} == before
    assert _schema(catalog_url) == "9999"
    change(catalog_url, "UPDATE catalog_schema SET version_num = '0004'")
    assert registry.get_metadata("m").version == 1


@pytest.mark.parametrize("content", ["table", "text", "noise"])
def test_a_file_of_somebody_else_is_left_alone(registry: ModelRegistry, home: Path, content: str) -> None:
    """Another program's database, or no database at all: an error, and not one byte is changed."""
    file = home / "medvllm" / "catalog.db"
    file.parent.mkdir()
    if content == "table":
        with closing(sqlite3.connect(file)) as theirs, theirs:
            theirs.execute("CREATE TABLE theirs (a INTEGER)")
    else:
        file.write_bytes(b"[models]\n" * 200 if content == "text" else os.urandom(5000))
    before = file.read_bytes()
    what = "not a catalogue: it has the table 'theirs'" if content == "table" else "file is not a database"
    for act in (
        lambda: registry.get_metadata("m"),
        registry.list_models,
        lambda: registry.register("n", "clinical", persist=True),
        registry.catalog.migrate,
    ):
        with pytest.raises(CatalogError, match=what):
            act()
    stores.close_all()
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == ["catalog.db"]


@pytest.mark.parametrize("processes", spread([2, 8], 2))
def test_processes_that_open_it_at_once_upgrade_it_once(old: str, registry: ModelRegistry, processes: int) -> None:
    """The others wait, and go on with what was made."""
    migrate = "r.catalog.migrate(); " if old.startswith("postgresql") else ""
    code = f"from medvllm.engine.model_runner import registry as r; {migrate}print(r.get_metadata('m').version)"
    for status, output, errors in together([code] * processes):
        assert (status, output) == (0, "2\n"), errors
    assert [event.action for event in registry.catalog.history()].count("migrated") == 1
    if old.startswith("sqlite"):
        assert len(list(Path(old.removeprefix("sqlite:///")).parent.glob("old.db.*.backup"))) == 1
    _check(registry)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_make_it_at_once_make_it_once(
    kind: str, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, home: Path
) -> None:
    """Eight: one event says so, and all of them write to the same one."""
    codes = [
        "from medvllm.engine.model_runner import registry as r\n"
        + "r.catalog.migrate()\n" * (kind == "postgresql")
        + f"r.register('m{i}', 'generic', persist=True)"
        for i in range(8)
    ]
    if kind == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        with server.database() as url:
            monkeypatch.setenv("MEDVLLM_CATALOG", url)
            results = together(codes)
            actions = [event.action for event in registry.catalog.history()]
            stores.close_all()
    else:
        results = together(codes)
        actions = [event.action for event in registry.catalog.history()]
        assert not list((home / "medvllm").glob("*.backup"))
    assert [(status, errors) for status, _, errors in results] == [(0, "")] * 8
    assert actions == ["created", *["registered"] * 8]


def test_the_migrations_make_the_tables_that_the_program_knows(catalog_url: str, registry: ModelRegistry) -> None:
    """What alembic would write as the next migration is nothing; every migration is known by its number."""
    registry.register("m", "generic", persist=True)
    with registry.catalog.database.writer().database.reading() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
    assert found == []
    scripts = ScriptDirectory(str(Path(schema.__file__).parent / "migrations"))
    assert tuple(script.revision for script in reversed(list(scripts.walk_revisions()))) == schema.SCHEMAS


def test_a_backup_put_in_the_place_of_the_file_is_seen(registry: ModelRegistry, home: Path, tmp_path: Path) -> None:
    """By a process that had the other one open: it reads and writes the one that is there."""
    file = home / "medvllm" / "catalog.db"
    registry.register("m", "generic", description="kept", persist=True)
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(tmp_path / "backup")) as copy:
        source.backup(copy)
    registry.register("m", "generic", description="lost", persist=True, replace=True)
    assert registry.get_metadata("m").description == "lost"
    for left in ("catalog.db-wal", "catalog.db-shm"):
        file.with_name(left).unlink()
    (tmp_path / "backup").replace(file)
    assert registry.get_metadata("m").description == "kept"
    assert registry.register("m", "generic", description="next", persist=True, replace=True).version == 2
    assert ModelRegistry().get_metadata("m").description == "next"
    stores.close_all()
    assert registry.get_metadata("m").description == "next" and registry.catalog.check_history()[2] == []
    file.unlink()
    assert registry.catalog.names() == []
    assert registry.register("m", "generic", persist=True).version == 1


def test_entries_of_a_development_version_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: ModelRegistry
) -> None:
    """Facts under former names are refused with the commands that take the entries over, and these work."""
    facts = {
        "model_type": "clinical",
        "aliases": ["old-ward"],
        "accepted": "0" * 64,
        "evidence": {"aliases": "https://example.org"},
    }
    with registry.catalog.database.begin(None) as transaction:
        transaction.register("ward", facts)
    for look in (lambda: registry.get_metadata("ward"), lambda: registry["old-ward"], registry.list_models):
        with pytest.raises(MigrationError) as refused:
            look()
    assert "'ward'" in str(refused.value)
    assert registry.catalog.check_history()[2] == []
    export, setting, *rest = [line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert (export, rest) == (
        "medvllm catalog export > entries.toml",
        ["medvllm catalog init", "medvllm catalog apply entries.toml"],
    )
    text = registry.catalog.export()
    monkeypatch.setenv("MEDVLLM_CATALOG", setting.partition("=")[2])
    monkeypatch.chdir(tmp_path)
    Path("entries.toml").write_text(text)
    for line in rest:
        assert command(monkeypatch, *line.split()[1:]).code == 0
    taken = ModelRegistry()["old-ward"]
    assert (taken.name, taken.version, taken.fact("baseline_digest")) == ("ward", 1, "0" * 64)
    assert taken.provenance == {"also_known_as": "https://example.org"}

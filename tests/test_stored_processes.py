"""Many processes, SIGKILL, full and read-only disks, a server that stops: the stored catalogue loses nothing."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from medvllm.catalog import stores
from medvllm.catalog.sql import SqlStore
from medvllm.catalog.sql.sqlite import SqliteFile
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError
from tests.support.children import asked, held, python, together
from tests.support.disks import mounted_disk
from tests.support.driver import Driver
from tests.support.postgres import Postgres
from tests.support.sql import change

SOME, MANY = 1, 25  # rounds of each operation: in every run, and in the slow one
counted = pytest.mark.parametrize(
    "rounds",
    [pytest.param(SOME, id="some"), pytest.param(MANY, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)


def test_eight_processes_that_register_at_once(catalog_url: str, registry: ModelRegistry) -> None:
    """Versions of the same two names: gapless, none lost, no error, and a history that accounts for all."""
    code = (
        "from medvllm.engine.model_runner import registry as r\n"
        "for i in range(5):\n"
        "    for name in 'ab':\n"
        "        entry = r.register(name, 'generic', description=f'{PROCESS} {i}', persist=True, replace=True)\n"
        "        assert r.get_metadata(f'{name}@{entry.version}').description == entry.description\n"
        "        r.catalog.set_alias(name, f'of-{PROCESS}', entry.version)\n"
        "        print(name, entry.version, entry.description)\n"
    )
    migrate = "from medvllm.engine.model_runner import registry as r\nr.catalog.migrate()\n"
    told: dict[str, dict[int, str]] = {"a": {}, "b": {}}
    for status, output, errors in together(f"{migrate}PROCESS = {i}\n{code}" for i in range(8)):
        assert status == 0, errors
        for line in output.splitlines():
            name, version, description = line.split(" ", 2)
            assert told[name].setdefault(int(version), description) == description
    for name, versions in told.items():
        assert sorted(versions) == list(range(1, 41))
        assert {n: entry.description for n, entry in registry.catalog.versions(name).items()} == versions
    assert {alias.alias for alias in registry.catalog.aliases("a")} == {f"of-{i}" for i in range(8)}
    number, _, flaws = registry.catalog.check_history()
    assert flaws == [] and number == 1 + 2 * 40 * 2


def test_a_new_file_waits_for_another_process_that_is_writing_to_it(tmp_path: Path) -> None:
    """SQLite itself does not wait when two connections switch an empty file to its write-ahead log."""
    file = tmp_path / "catalog.db"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.3, other.execute, ["ROLLBACK"])
        timer.start()
        assert SqliteFile(file).migrate() == (None, None)
        timer.join()


# Somebody else in this process creates the file when this one has just seen that there is none.
_CREATED_MEANWHILE = """
import os, sqlite3, sys
from medvllm.engine.model_runner import registry

file = os.path.join(os.environ["MEDVLLM_HOME"], "catalog.db")
other = []

def create(event, arguments):
    if event == "open" and str(arguments[0]) == file and not other:
        other.append(sqlite3.connect(file, isolation_level=None))
        other[0].execute("PRAGMA journal_mode = WAL")
        other[0].execute("PRAGMA user_version = 1")

for line in sys.stdin:
    sys.addaudithook(create)
    registry.catalog.create()
    print(len(other), flush=True)
"""


def test_creating_a_file_leaves_the_locks_of_other_connections(home: Path) -> None:
    """The system ends all locks of a process on a file as soon as the process closes the file once."""
    with held(_CREATED_MEANWHILE) as process:
        assert asked(process, "create") == "1"
        file = home / "medvllm" / "catalog.db"
        with closing(sqlite3.connect(file)) as last:
            assert last.execute("SELECT version_num FROM catalog_schema").fetchone()
        assert file.with_name("catalog.db-wal").exists()  # whoever closes the file last removes the log


def test_a_connection_in_use_is_closed_after_its_use(tmp_path: Path) -> None:
    """Also if another thread has closed the database meanwhile."""
    database, inside, end = SqliteFile(tmp_path / "catalog.db"), threading.Event(), threading.Event()
    database.migrate()

    def read() -> int:
        with database.reading() as connection:
            inside.set()
            end.wait()
            return int(connection.exec_driver_sql("SELECT count(*) FROM catalog_head").scalar_one())

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(read)
        inside.wait()
        database.close()
        with database.reading():  # through other connections
            end.set()
            assert found.result() == 1
        database.close()
    assert list(tmp_path.glob("catalog.db-*")) == []  # who closes the file last removes the log


def test_writers_take_turns_whatever_the_server_has_set(
    postgres: Postgres, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database whose transactions see one moment by default is written to by many all the same."""
    with postgres.database() as url:
        monkeypatch.setenv("MEDVLLM_CATALOG", url)
        change(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET default_transaction_isolation = 'serializable'")
        registry.catalog.migrate()
        code = (
            "from medvllm.engine.model_runner import registry as r\n"
            "for i in range(10): r.register('m', 'generic', description=f'{PROCESS} {i}', persist=True, replace=True)"
        )
        for status, _, errors in together(f"PROCESS = {i}\n{code}" for i in range(3)):
            assert status == 0, errors
        assert sorted(registry.catalog.versions("m")) == list(range(1, 31))
        stores.close_all()


IMPORTS = """
import alembic.command, alembic.config, psycopg, tomlkit
import medvllm.catalog.exchange, medvllm.catalog.sql.check, medvllm.catalog.sql.transaction
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    """One for all operations."""
    driver = Driver(IMPORTS)
    yield driver
    driver.stop()


def _apply(i: int) -> str:
    """Return a statement that gives ten names their next version, and moves an alias of each to it."""
    text = "".join(f'[models.m{k}]\nmodel_type = "generic"\ndescription = "{i}"\n' for k in range(10))
    text += '[models.m]\nmodel_type = "generic"\n[aliases]\n'
    text += "".join(f"m{k} = {{later = {i + 1}}}\n" for k in range(10))
    return f"registry.catalog.apply({text!r})"


OPERATIONS: dict[str, Callable[[int], str]] = {
    "register": lambda i: f"registry.register('m', 'generic', description='{i}', persist=True, replace=True)",
    "alias": lambda i: f"registry.catalog.set_alias('m', 'production', {1 + i % 2})",
    "apply": _apply,
}


@counted
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_leaves_all_of_a_change_or_nothing(
    catalog_url: str, registry: ModelRegistry, driver: Driver, operation: str, rounds: int
) -> None:
    """At any moment: the database opens, the history checks, and the next run completes."""
    environment = {name: os.environ[name] for name in ("MEDVLLM_HOME", "MEDVLLM_CATALOG") if name in os.environ}
    if operation != "apply":
        for text in ("a", "b"):
            registry.register("m", "generic", description=text, persist=True, replace=True)
    statement = OPERATIONS[operation]

    def state() -> tuple[str, int]:
        # What a killed process had begun on a server ends first: whoever comes to write waits for it.
        registry.catalog.plan(registry.catalog.export())
        number, _, flaws = registry.catalog.check_history()
        assert flaws == []
        return registry.catalog.export(), number

    usual_s, changes = float("inf"), set()
    for i in range(3):  # the first makes what the others change
        _, before = state()
        status, seconds = driver.run(statement(i), environment)
        assert status == 0
        usual_s = min(usual_s, seconds)
        changes.add(state()[1] - before)
    whole, chance, killed = max(min(changes), 1), random.Random(0), 0
    for i in range(3, rounds + 3):
        text, before = state()
        status, _ = driver.run(statement(i), environment, chance.uniform(0, usual_s))
        killed += status == -signal.SIGKILL
        now, after = state()
        assert after - before in (0, whole) and (after == before) == (now == text)
        assert status != 0 or after > before
        assert driver.run(statement(i), environment)[0] == 0
        assert state()[1] == before + whole
    assert killed >= rounds // 4, killed


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 1 MB, with the catalogue on it."""
    with mounted_disk(tmp_path / "disk", "1m") as disk:
        monkeypatch.setenv("MEDVLLM_HOME", str(disk))
        yield disk
        stores.close_all()


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(b"x" * 512)


def test_a_full_disk_loses_nothing(registry: ModelRegistry, small_disk: Path) -> None:
    """The system's own words; what was there can be read, and with room again the same call completes."""
    _fill(small_disk)
    with pytest.raises(CatalogError, match="catalog.db cannot be .*: .*(full|I/O error)"):
        registry.register("m", "generic", persist=True)
    stores.close_all()
    (small_disk / "filler").unlink()
    for i in range(5):
        registry.register("m", "generic", description=f"{i}", persist=True, replace=True)
    before = registry.catalog.export(), registry.catalog.history()
    _fill(small_disk)
    with pytest.raises(CatalogError, match="catalog.db cannot be written: .*full"):
        for i in range(500):  # the log that is there already has some room
            registry.register("n", "generic", description=f"{i}" * 100, persist=True, replace=True)
            before = registry.catalog.export(), registry.catalog.history()
    assert (registry.catalog.export(), registry.catalog.history()) == before
    assert registry.get_metadata("m").version == 5 and registry.catalog.check_history()[2] == []
    (small_disk / "filler").unlink()
    assert registry.register("m", "generic", persist=True, replace=True).version == 6
    stores.close_all()
    assert registry.catalog.check_history()[2] == []


def test_a_full_disk_stops_a_migration_and_its_backup(registry: ModelRegistry, small_disk: Path) -> None:
    """The old schema and its data stay; with room again it is migrated."""
    registry.register("m", "generic", persist=True)
    registry.catalog.migrate("0001")
    _fill(small_disk)
    with pytest.raises(CatalogError, match="catalog.db cannot be .*: .*(full|I/O error|space)"):
        registry.get_metadata("m")
    assert list(small_disk.glob("*.partial")) == []
    stores.close_all()
    (small_disk / "filler").unlink()
    assert registry.get_metadata("m").version == 1 and registry.catalog.check_history()[2] == []


@pytest.mark.parametrize("left_open", [False, True], ids=["closed", "with-a-log"])
def test_a_read_only_disk_can_be_read(registry: ModelRegistry, small_disk: Path, left_open: bool) -> None:
    """All of it, also what a process that died had in its log; writing says that it cannot be."""
    code = (
        "from medvllm.engine.model_runner import registry as r; import os, signal\n"
        "r.register('m', 'generic', description='kept', persist=True)\n"
    )
    # A fresh interpreter, which closes its connections when it ends.
    command = [sys.executable, "-c", code + "os.kill(os.getpid(), signal.SIGKILL)\n" * left_open]
    assert subprocess.run(command).returncode in (0, -signal.SIGKILL)
    assert (small_disk / "catalog.db-wal").exists() == left_open
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert registry.get_metadata("m").description == "kept" and "m" in registry.list_models()
    assert registry.catalog.check_history()[2] == [] and "kept" in registry.catalog.export()
    for write in (
        lambda: registry.register("n", "generic", persist=True),
        lambda: registry.catalog.set_alias("m", "production", 1),
        lambda: registry.unregister("m", persist=True),
    ):
        with pytest.raises(
            CatalogError, match="cannot be written: .*readonly database.\nCheck the permissions: ls -ld"
        ):
            write()
    stores.close_all()
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert registry.register("m", "generic", persist=True, replace=True).version == 2


NOBODY = """
from medvllm.catalog import builtin_entries
from medvllm.model_registry import ModelRegistry
import medvllm.catalog.sql, os, sys
builtin_entries()  # all that is read elsewhere, while it may be
registry = ModelRegistry()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except Exception as error:
        print(type(error).__name__, " ".join(str(error).split()), flush=True)
"""


def test_a_catalogue_of_another_user_can_be_read(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its owner has it open or not, and as it changes; what may not even be read is an error, not nothing."""
    if os.getuid() != 0:
        pytest.skip("becoming another user needs root")
    folder = Path(tempfile.mkdtemp())  # the tests' own folders are closed to others
    try:
        folder.chmod(0o755)
        monkeypatch.setenv("MEDVLLM_CATALOG", str(folder / "catalog.db"))
        registry.catalog.create()
        registry.register("m", "generic", description="a", persist=True)
        stores.close_all()
        with held(NOBODY) as other:
            look = "registry.get_metadata('m').description"
            write = "registry.register('n', 'generic', persist=True)"
            assert asked(other, look) == "a"
            assert "cannot be written: attempt to write a readonly database" in asked(other, write)
            registry.register("m", "generic", description="b", persist=True, replace=True)
            assert asked(other, look) == "b"
            stores.close_all()
            assert asked(other, look) == "b"
            registry.register("m", "generic", description="c", persist=True, replace=True)
            stores.close_all()
            assert asked(other, look) == "c"
            assert (
                "cannot be written" in asked(other, write)
                and asked(other, "registry.catalog.check_history()[2]") == "[]"
            )
        with held(NOBODY) as other:
            assert asked(other, look) == "c"
            folder.chmod(0o700)
            assert asked(other, look).startswith("CatalogError ") and "Permission denied" in asked(other, look)
    finally:
        stores.close_all()
        shutil.rmtree(folder)


_READ_ANEW = """
import os, pathlib
from medvllm.catalog.sql import SqlStore

def read_anew(times):
    for _ in range(times):
        store = SqlStore(pathlib.Path(os.environ["MEDVLLM_CATALOG"]))
        found = store.names()
        store.database.close()
    return found
"""


def test_another_user_reads_while_the_owner_opens_and_closes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log comes and goes, and a user who may not write the file must open it in another way each time."""
    if os.getuid() != 0:
        pytest.skip("becoming another user needs root")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        monkeypatch.setenv("MEDVLLM_CATALOG", str(folder / "catalog.db"))
        store = SqlStore(folder / "catalog.db")
        with store.transaction() as transaction:
            transaction.register("m", {"model_type": "generic"})
        with held(_READ_ANEW + NOBODY) as other, ThreadPoolExecutor(1) as pool:
            found = pool.submit(asked, other, "read_anew(100)")
            while not found.done():
                with store.database.writing():
                    pass
                store.database.close()
            assert found.result() == "['m']"
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_server_that_stops_is_waited_for(
    postgres: Postgres, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was looked up goes on, with one warning; the rest is an error; once it is back, changes are seen."""
    with postgres.database() as url:
        monkeypatch.setenv("MEDVLLM_CATALOG", url)
        registry.catalog.migrate()
        registry.register("m", "generic", description="a", also_known_as=["acme/m"], persist=True)
        other = ModelRegistry()
        assert registry.get_metadata("m").description == "a"
        assert registry.get_metadata("biobert-base-cased-v1.2").origin == "built-in"
        assert registry.get_metadata("acme/m").name == "m"
        with postgres.stopped():
            for _ in range(3):
                assert registry.get_metadata("m").description == registry.get_metadata("acme/m").description == "a"
                assert registry.get_metadata("biobert-base-cased-v1.2").origin == "built-in"
            assert caplog.text.count("does not answer. What was read before is still used") == 1
            for act in (
                lambda: registry.get_metadata("m@1"),
                lambda: other.get_metadata("m"),
                registry.list_models,
                registry.catalog.history,
                lambda: registry.register("n", "generic", persist=True),
                lambda: registry.catalog.set_alias("m", "production", 1),
                registry.catalog.migrate,
            ):
                with pytest.raises(CatalogError, match=f"127.0.0.1:{postgres.port}/test_.* cannot be "):
                    act()
        store = "from medvllm.engine.model_runner import registry as r; r.register('m', 'generic', description={!r}, "
        assert python(f"{store.format('b')} persist=True, replace=True)").returncode == 0
        assert other.get_metadata("m@2").description == "b"  # whoever gets an answer knows that it is back
        assert registry.get_metadata("m").description == "b"
        assert (
            python(
                "from medvllm.engine.model_runner import registry as r\n"
                "r.register('m', 'generic', description='c', persist=True, replace=True)"
            ).returncode
            == 0
        )
        assert registry.get_metadata("m").description == "c" and registry.catalog.check_history()[2] == []
        assert tomllib.loads(registry.catalog.export())["models"].keys() == {"m@1", "m@2", "m@3"}
        stores.close_all()

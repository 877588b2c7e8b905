"""`medvllm ps` and `medvllm plan`: what processes have in memory, and what a model would take."""

import ctypes
import gc
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medvllm.catalog import Catalog
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import CatalogError
from medvllm.model_registry.loaded_models import LoadedModels
from medvllm.processes import ProcessRecord, RecordFolder, list_processes
from tests.support import tiny, warm

_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces and other users")


def _medvllm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.medvllm(*arguments, **environment)


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _run(home: Path) -> Path:
    return home / "medvllm" / "run"


def _kept(folder: Path) -> list[ProcessRecord]:
    """Return the notes as they lie in a folder."""
    found = [ProcessRecord.parse(kept.text) for kept in RecordFolder(folder).read_all()]
    return [note for note in found if note is not None]


def _noted(folder: Path, model: Path) -> list[tuple[bool, bool]]:
    """Return for each model of that folder that is noted whether it is leased, and whether only a caller holds it."""
    models = (held for note in _kept(folder) for held in note.models)
    return [(held["leases"] > 0, held["evicted"]) for held in models if held["name"] == str(model)]


_HOLDER = """
import sys
from pathlib import Path
from medvllm.processes import RecordFolder, publisher

class Holder:
    def describe_models(self, *, will_publish=True):
        return [{"name": "ward", "version": 1, "origin": "stored", "snapshot": "s", "device": "cpu", "dtype": "float32",
                 "model_class": "a:B", "size_bytes": 1, "mapped_bytes": 0, "leases": 1, "hits": 0, "load_s": 0.1,
                 "loaded_at": 1.0, "last_used": 1.0, "keep_alive": None, "evicted": False,
                 "offloaded": False}]
    def record_stores(self):
        return [RecordFolder(Path(sys.argv[1]))]

holder = Holder()
publisher.schedule_write(holder)
sys.stdin.readline()
"""


@contextmanager
def _holding(folder: Path, *before: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that notes a lease of ward@1 in a folder; `before` are the words of a command that starts it."""
    command = [*before, sys.executable, "-W", "error", "-c", _HOLDER, str(folder), "Mr. Doe", "--token=hf_SECRET"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.communicate(b"\n", timeout=60)


def test_ps_shows_what_other_processes_hold(tmp_path: Path, home: Path) -> None:
    """With size, what of it is shared, leases and how long it stays; a process that is gone is not shown."""
    folder = tiny.bert_encoder(tmp_path / "m")
    code = (
        "from medvllm.engine.model_runner import registry; import sys\n"
        f"registry.register('ward-bert', 'clinical', model_path={str(folder)!r})\n"
        "with registry.lease('ward-bert', keep_alive=-1): sys.stdin.read()"
    )
    holder = warm.Conversation(code)
    try:
        _until(lambda: _noted_by(holder.pid, home))
        (model,) = _shown(holder.pid)
        assert (model["name"], model["device"], model["leases"]) == ("ward-bert", "cpu", 1)
        assert model["keep_alive"] == -1 and 0 < model["mapped_bytes"] <= model["size_bytes"] and model["is_near"]
        rows = [line.split("\t") for line in _medvllm("ps").stdout.splitlines()]
        (row,) = [row for row in rows if row[0] == str(holder.pid)]
        assert row[1:4] == ["ward-bert", "cpu", "float32"] and row[-1] == "pinned"
    finally:
        holder.kill()
    assert _shown(holder.pid) == [] and not _noted_by(holder.pid, home)
    empty = _medvllm("ps", "--json", MEDVLLM_HOME=str(tmp_path / "home"))
    assert empty.stdout == "[]\n"
    assert "No process has a model in memory." in _medvllm("ps", MEDVLLM_HOME=str(tmp_path / "home")).stderr


def _noted_by(pid: int, home: Path) -> list[ProcessRecord]:
    """Return the notes of a process: this one may have models that other tests have left to the collector."""
    return [note for note in _kept(_run(home)) if note.process.pid == pid]


def _shown(pid: int) -> list[dict[str, Any]]:
    """Return what `medvllm ps` shows of a process."""
    return [model for model in json.loads(_medvllm("ps", "--json").stdout) if model["pid"] == pid]


def test_a_note_follows_models_and_leases(registry: ModelRegistry, tmp_path: Path, home: Path) -> None:
    """Those of a model that was loaded long before, too; and one that only a caller holds is noted until it goes."""
    folder = tiny.bert_encoder(tmp_path / "m")
    held = [registry.load_model(folder)]
    _until(lambda: _noted(_run(home), folder) == [(False, False)])
    with registry.lease(folder):
        _until(lambda: _noted(_run(home), folder) == [(True, False)])
    _until(lambda: _noted(_run(home), folder) == [(False, False)])
    held.append(held)  # type: ignore[arg-type]  # only the collector can free it
    registry.clear_cache()
    _until(lambda: _noted(_run(home), folder) == [(False, True)])
    del held
    gc.collect()
    _until(lambda: _noted(_run(home), folder) == [])


def test_a_model_that_is_leased_for_each_request_is_noted_once(
    registry: ModelRegistry, tmp_path: Path, home: Path
) -> None:
    """A server writes no note for each request."""
    runner = ModelRunner(tiny.bert_encoder(tmp_path / "m"), registry=registry)
    runner.embed(["fever"])
    _until(lambda: _noted(_run(home), tmp_path / "m") == [(True, False)])
    before = [file.stat().st_ino for file in _run(home).glob("*.json")]
    for _ in range(60):
        runner.embed(["fever"])
    assert _noted(_run(home), tmp_path / "m") == [(True, False)]
    assert [file.stat().st_ino for file in _run(home).glob("*.json")] == before


def test_a_note_is_private_whatever_the_umask(home: Path) -> None:
    """It holds the program's name at most, no argument: those may be a patient's words, or a token."""
    folder = _run(home)
    folder.parent.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        with _holding(folder) as holder:
            _until(lambda: _kept(folder))
            (file,) = folder.iterdir()
            text = file.read_text()
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and stat.S_IMODE(file.stat().st_mode) == 0o600
            assert "Doe" not in text and "SECRET" not in text and json.loads(text)["program"] == "-c"
            assert _kept(folder)[0].process.pid == holder.pid
    finally:
        os.umask(before)
    assert list(folder.iterdir()) == []  # it has ended


def test_where_a_catalogues_folder_is_shared_so_are_the_notes(tmp_path: Path) -> None:
    """With its group, if that may write to it; with everybody, if everybody may."""
    for above, folder, file in ((0o755, 0o700, 0o600), (0o2775, 0o2770, 0o640), (0o1777, 0o1777, 0o644)):
        shared = tmp_path / f"{above:o}"
        shared.mkdir()
        shared.chmod(above)
        board = RecordFolder(shared / "run", is_shared=True)
        board.write("a" * 32, "{}")
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (shared / "run", shared / "run" / f"{'a' * 32}.json")]
        assert modes == [folder, file]


def _sound(**changes: Any) -> dict[str, Any]:
    """Return a sound note of this process, but for the changes; those to its model are in `model`."""
    process = notes_of_this_process()
    model = {
        **dict.fromkeys(("snapshot", "device", "dtype", "model_class"), "x"),
        "name": "ward",
        "origin": "stored",
        "version": 1,
        "size_bytes": 1,
        "mapped_bytes": 0,
        "leases": 1,
        "hits": 0,
        "load_s": 0.1,
        "loaded_at": 1.0,
        "last_used": 1.0,
        "keep_alive": None,
        "evicted": False,
        "offloaded": False,
    }
    own = changes.pop("model", {})
    model = {key: value for key, value in (model | own).items() if value != "absent"}
    return {**process, "program": "p", "models": [model], **changes}


def notes_of_this_process() -> dict[str, Any]:
    """Return what a note says of this process."""
    from medvllm.processes.process import Process

    return vars(Process.current()).copy()


_UNSOUND: dict[str, Callable[[], object]] = {
    "empty": lambda: "",
    "cut": lambda: json.dumps(_sound())[:-2],
    "not a dict": lambda: "[1]",
    "null": lambda: "null",
    "deep": lambda: "[" * 100_000,
    "deep models": lambda: '{"models": ' + "[" * 100_000,
    "not UTF-8": lambda: b"\xff\xfe{}",
    "a long number": lambda: json.dumps(_sound()).replace('"pid": ', '"pid": ' + "9" * 5000),
    "a pid beyond all": lambda: _sound(pid=10**30),
    "pid -1": lambda: _sound(pid=-1),
    "pid 0": lambda: _sound(pid=0),
    "a pid as text": lambda: _sound(pid="1"),
    "a pid as a switch": lambda: _sound(pid=True),
    "no pid": lambda: {key: value for key, value in _sound().items() if key != "pid"},
    "models 5": lambda: _sound(models=5),
    "models null": lambda: _sound(models=None),
    "a model of a kind of its own": lambda: _sound(models=[[]]),
    "an empty model": lambda: _sound(models=[{}]),
    "a name of a kind of its own": lambda: _sound(model={"name": ["ward"]}),
    "a name that moves the cursor": lambda: _sound(model={"name": "\x1b[2Jward"}),
    "a long name": lambda: _sound(model={"name": "w" * 10_000}),
    "a version as text": lambda: _sound(model={"version": "1"}),
    "no leases": lambda: _sound(model={"leases": "absent"}),
    "leases as a list": lambda: _sound(model={"leases": [1]}),
    "a size beyond all": lambda: _sound(model={"size_bytes": 10**400}),
    "infinite": lambda: json.dumps(_sound(model={"last_used": float("inf")})),
    "not a number": lambda: json.dumps(_sound(model={"last_used": float("nan")})),
    "a host of a kind of its own": lambda: _sound(host={"a": 1}),
    "another start": lambda: _sound(started="1"),
}


def test_notes_that_are_none_stop_nobody(registry: ModelRegistry, tmp_path: Path, home: Path) -> None:
    """Whatever lies in the folder, `ps` and `unregister` pass over it, and follow no link."""
    folder = _run(home)
    folder.mkdir(parents=True)
    for i, make in enumerate(_UNSOUND.values()):
        content = make()
        text = json.dumps(content) if isinstance(content, dict) else content
        file = folder / f"{i:032x}.json"
        file.write_bytes(text if isinstance(text, bytes) else str(text).encode())
    others = [folder / f"{'f' * 31}{digit}.json" for digit in "0123456"]
    os.mkfifo(others[0])
    others[1].symlink_to("/dev/zero")
    others[2].symlink_to(folder / f"{0:032x}.json")
    others[3].mkdir()
    with others[4].open("wb") as large:
        large.truncate(1 << 30)
    others[5].write_text(json.dumps(_sound()))
    others[5].chmod(0)
    (folder / "1.json").write_text(json.dumps(_sound()))
    (folder / f"{'9' * 200}.json").write_text("{}")
    expected = 1 if os.geteuid() == 0 else 0  # root reads what nobody may
    assert [note.models[0]["name"] for note in registry.list_processes()] == ["ward"] * expected
    others[5].unlink()
    registry.register("ward", "clinical", model_path=str(tiny.bert_encoder(tmp_path / "m")), persist=True)
    registry.unregister("ward", persist=True)
    assert registry.catalog.names() == []


def test_a_planted_link_is_not_written_through(home: Path, tmp_path: Path) -> None:
    """A note gets a name that nobody can know, and takes the place of a link of that name."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    board = RecordFolder(_run(home))
    board.write("a" * 32, "{}")
    (_run(home) / f"{'b' * 32}.json").symlink_to(victim)
    board.write("b" * 32, "{}")
    assert victim.read_text() == "mine" and not (_run(home) / f"{'b' * 32}.json").is_symlink()


@_AS_ROOT
def test_a_note_that_another_user_made_up_is_not_believed(home: Path) -> None:
    """Only root speaks for another user's process."""
    folder = _run(home)
    folder.mkdir(parents=True)
    file = folder / f"{'a' * 32}.json"
    file.write_text(json.dumps(_sound()))
    assert len(list_processes([RecordFolder(folder)])) == 1
    os.chown(file, 65534, 65534)
    assert list_processes([RecordFolder(folder)]) == [] and file.exists()


def test_notes_from_elsewhere_count_while_they_give_signs_of_life(home: Path) -> None:
    """For three minutes; they are taken away after a day, and those of a process that is gone at once."""
    board = RecordFolder(_run(home))
    for i, age_s in enumerate((0, 170, 200, 80_000, 90_000)):
        board.write(f"{i:032x}", json.dumps(_sound(boot="another", pid=i + 1)))
        os.utime(_run(home) / f"{i:032x}.json", (time.time() - age_s,) * 2)
    board.write("f" * 32, json.dumps(_sound(started="another")))
    assert [note.process.pid for note in list_processes([board])] == [1, 2]
    assert sorted(file.stem[-1] for file in _run(home).iterdir()) == ["0", "1", "2", "3"]


@_AS_ROOT
def test_processes_in_containers_are_seen_from_outside_and_left_alone(
    registry: ModelRegistry, tmp_path: Path, home: Path
) -> None:
    """Two with one id, too; a version that one of them has leased is not removed."""
    registry.register("ward", "clinical", model_path=str(tiny.bert_encoder(tmp_path / "m")), persist=True)
    unshare = "unshare", "--pid", "--fork", "--mount-proc", "--kill-child"
    with _holding(_run(home), *unshare), _holding(_run(home), *unshare):
        _until(lambda: len(registry.list_processes()) == 2)
        assert {note.process.pid for note in registry.list_processes()} == {1}
        assert json.loads(_medvllm("ps", "--json").stdout)[0]["is_near"] is False
        assert "1 on " in _medvllm("ps").stdout
        with pytest.raises(CatalogError, match=r"Version 1 of model 'ward' is in use by process 1 on "):
            registry.unregister("ward", persist=True)
        assert len(_kept(_run(home))) == 2
    registry.unregister("ward", persist=True)


@_AS_ROOT
def test_a_process_that_the_system_hides_is_not_taken_for_gone(home: Path) -> None:
    """As with hidepid: another user's process cannot be seen, and its note stays."""
    folder = _run(home)
    with _holding(folder) as holder:
        _until(lambda: _kept(folder))
        for path in (folder, *folder.iterdir()):
            path.chmod(0o777)
        for path in (folder, *folder.parents):
            if path.stat().st_uid == 0 and path.is_relative_to("/tmp") and path != Path("/tmp"):
                path.chmod(path.stat().st_mode | 0o055)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            libc = ctypes.CDLL(None)
            status = libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None)
            status = status or libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2")
            os.setgid(65534)
            os.setuid(65534)
            seen = [] if status else [note.process.pid for note in list_processes([RecordFolder(folder)])]
            os._exit(77 if status else 0 if seen == [holder.pid] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(_kept(folder)) == 1


def test_homes_that_share_a_catalogue_see_each_others_leases(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notes lie where the catalogue is."""
    monkeypatch.setenv("MEDVLLM_CATALOG", str(tmp_path / "share" / "catalog.db"))
    (tmp_path / "share").mkdir()
    registry = ModelRegistry()
    registry.catalog.create()
    registry.register("ward", "clinical", model_path=str(tiny.bert_encoder(tmp_path / "m")), persist=True)
    with registry.lease("ward"):
        _until(lambda: [note.models[0]["leases"] for note in _kept(tmp_path / "share" / "run")] == [1])
        run = _medvllm("unregister", "ward", MEDVLLM_HOME=str(tmp_path / "other"))
        assert run.returncode == 1 and f"is in use by process {os.getpid()}." in run.stderr
        assert json.loads(_medvllm("ps", "--json", MEDVLLM_HOME=str(tmp_path / "other")).stdout)[0]["name"] == "ward"
    registry.clear_cache()


def test_notes_lie_beside_the_catalogue_itself_where_homes_have_links_to_it(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a link, by a link to its folder or by its name: all who share it see each other."""
    share = tmp_path / "share"
    share.mkdir()
    monkeypatch.setenv("MEDVLLM_CATALOG", str(share / "catalog.db"))
    registry.catalog.create()
    (tmp_path / "folder").symlink_to("share")
    assert registry.catalog.record_store() == RecordFolder(share / "run")
    monkeypatch.setenv("MEDVLLM_CATALOG", str(tmp_path / "folder" / "catalog.db"))
    assert registry.catalog.record_store() == RecordFolder(share / "run")
    monkeypatch.delenv("MEDVLLM_CATALOG")
    for home in (tmp_path / "one", tmp_path / "two"):
        home.mkdir()
        (home / "catalog.db").symlink_to(share / "catalog.db")
        monkeypatch.setenv("MEDVLLM_HOME", str(home))
        assert LoadedModels(Catalog(registry.catalog)).record_stores() == [
            RecordFolder(share / "run"),
            RecordFolder(home / "run"),
        ]


def test_a_process_knows_its_own_leases_at_once(registry: ModelRegistry, tmp_path: Path) -> None:
    """Before they are noted for others."""
    registry.register("ward", "clinical", model_path=str(tiny.bert_encoder(tmp_path / "m")), persist=True)
    with registry.lease("ward"), pytest.raises(CatalogError, match=f"is in use by process {os.getpid()}"):
        registry.unregister("ward", persist=True)
    registry.unregister("ward", persist=True)


def test_a_forked_child_has_a_note_of_its_own(registry: ModelRegistry, tmp_path: Path, home: Path) -> None:
    """Its parent's stays the parent's."""
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.load_model(folder)
    _until(lambda: _noted(_run(home), folder) == [(False, False)])
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        with registry.lease(folder):
            os.read(reading, 1)
        os._exit(0)
    try:
        _until(lambda: sorted(_noted(_run(home), folder)) == [(False, False), (True, False)])
        assert {note.process.pid for note in _kept(_run(home))} == {pid, os.getpid()}
    finally:
        os.write(writing, b"x")
        os.waitpid(pid, 0)
    assert [note.process.pid for note in registry.list_processes()] == [os.getpid()]


def test_a_home_that_cannot_be_written_costs_no_model(
    registry: ModelRegistry, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note is only for show."""
    (home / "file").write_text("")
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.load_model(folder)
    monkeypatch.setenv("MEDVLLM_HOME", str(home / "file" / "run"))
    with pytest.raises(OSError, match="file"):
        RecordFolder(home / "file" / "run").write("a" * 32, "{}")
    assert list(RecordFolder(home / "file" / "run").read_all()) == []
    monkeypatch.setenv("MEDVLLM_HOME", str(home / "medvllm"))
    assert registry.load_model(folder) and len(registry._model_cache) == 1


def test_plan_on_the_command_line(tmp_path: Path) -> None:
    """Size, whether it fits, and what it was measured to take once it has been loaded."""
    folder = str(tiny.bert_encoder(tmp_path / "m"))
    plan = json.loads(_medvllm("plan", folder, "--json", MEDVLLM_MEMORY_BUDGET="cpu=1GB").stdout)
    assert (plan["fit"], plan["known_by"], plan["budget_bytes"]) == ("now", "headers", 10**9)
    assert _medvllm("run", folder, "fever").returncode == 0
    rows = dict(
        line.split("\t") for line in _medvllm("plan", folder, MEDVLLM_MEMORY_BUDGET="cpu=10kB").stdout.splitlines()
    )
    assert rows["fits"] == "never" and rows["size"].endswith("(measured)") and rows["budget"] == "10.0 KB"
    assert "Not enough memory for model" in _medvllm("run", folder, "fever", MEDVLLM_MEMORY_BUDGET="cpu=10kB").stderr

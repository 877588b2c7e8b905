"""The lock file itself: who approved, one writer at a time, and every kind of place that it may lie in."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import DigestMismatchError, MedVLLMError, RequestError, SourceError
from medvllm.sources import Approval, Digest, Lock, LockedModel
from medvllm.sources.lock_text import parse_lock, to_toml
from medvllm.sources.lock_writer import lock_file_itself
from tests.support import tiny


@pytest.fixture
def file(home: Path) -> Path:
    """Where the test's lock lies."""
    return home / "medvllm.lock"


def _model(number: int = 0) -> LockedModel:
    return LockedModel("folder", None, {"config.json": Digest(number, f"{number:064x}")})


_WRITER = """
import sys
from pathlib import Path
from medvllm.sources import Approval, Digest, Lock, LockedModel
who, file = sys.argv[1:]
for number in range({times}):
    model = LockedModel("folder", None, {{"config.json": Digest(number, f"{{number:064x}}")}})
    Lock(Path(file), {{}}).approve({{f"{{who}}-{{number}}": model}})
"""


def test_two_homes_lose_nothing_in_one_lock(home: Path, file: Path) -> None:
    """Two processes with a home each write to one file at once: all of it is there, and nothing else is left."""
    code = _WRITER.format(times=60)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, who, str(file)],
            env={**os.environ, "MEDVLLM_HOME": str(home / who)},
            stderr=subprocess.PIPE,
        )
        for who in ("ana", "ben")
    ]
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == b""
    assert len(Lock.read(file).models) == 120
    assert [path.name for path in home.iterdir() if "lock" in path.name] == ["medvllm.lock"]


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="mounting takes root and unshare")
def test_a_lock_that_is_mounted_by_itself_is_written_in_place(tmp_path: Path) -> None:
    """As into a container, where the folder around it is another one; two containers lose nothing."""
    file = tmp_path / "medvllm.lock"
    file.write_text(to_toml({"old": _model()}))
    code = _WRITER.format(times=20)
    script = 'mkdir -p "$1" && touch "$1/medvllm.lock" && mount --bind "$2" "$1/medvllm.lock" && shift 2 && exec "$@"'
    writers = []
    for who in ("ana", "ben"):
        inside = tmp_path / who
        program = [sys.executable, "-c", code, who, str(inside / "medvllm.lock")]
        command = ["unshare", "-m", "sh", "-ec", script, "sh", str(inside), str(file), *program]
        writers.append(subprocess.Popen(command, stderr=subprocess.PIPE))
    for writer in writers:
        assert writer.communicate(timeout=120)[1] == b""
    assert len(Lock.read(file).models) == 41


def test_a_lock_keeps_its_mode_owner_and_links(tmp_path: Path) -> None:
    """A link is followed, and stays one."""
    real, link = tmp_path / "policy" / "approved.lock", tmp_path / "medvllm.lock"
    real.parent.mkdir()
    real.write_text(to_toml({}))
    real.chmod(0o640)
    owner = 1234 if os.getuid() == 0 else os.getuid()
    os.chown(real, owner, -1)
    link.symlink_to("policy/approved.lock")
    Lock(link, {}).approve({"m": _model()})
    status = real.stat()
    assert link.is_symlink() and list(Lock.read(real).models) == ["m"]
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o640, owner)
    assert sorted(path.name for path in real.parent.iterdir()) == ["approved.lock"]


def test_a_home_that_cannot_be_written_stops_no_lock(
    registry: ModelRegistry, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a history that cannot be."""
    monkeypatch.setenv("MEDVLLM_HOME", "/proc/medvllm")
    registry.lock(tiny.bert_encoder(tmp_path / "m"))
    assert len(Lock.read(file).models) == 1


def test_each_model_says_who_approved_it(registry: ModelRegistry, tmp_path: Path, file: Path) -> None:
    """When and why too; the history has the same. What is locked as it is stays, byte for byte."""
    registry.register("m", "clinical", model_path=tiny.bert_encoder(tmp_path / "m"), persist=True)
    registry.lock("m@1", reason="reviewed on 3 May")
    first = file.read_bytes()
    approved = tomllib.loads(first.decode())["models"]["m@1"]["approved"]
    event = registry.catalog.history("m")[-1]
    assert (event.action, event.version, event.reason) == ("locked", 1, "reviewed on 3 May")
    assert approved == {"by": event.who, "at": approved["at"], "reason": "reviewed on 3 May"}
    assert event.detail == {"source": "folder", "digest": Lock.read(file).models["m@1"].digest, "lock": str(file)}
    registry.lock("m@1")
    registry.lock("m@1", reason="reviewed on 3 May")
    assert file.read_bytes() == first and len(registry.catalog.history("m")) == 2
    registry.lock("m@1", reason="reviewed again")
    assert tomllib.loads(file.read_text())["models"]["m@1"]["approved"]["reason"] == "reviewed again"
    assert registry.catalog.check_history()[2] == []
    with pytest.raises(RequestError, match="A reason must have 1 to 2,000 characters"):
        registry.lock("m@1", reason="")


def test_any_text_survives_the_file() -> None:
    """Quotes, backslashes, control characters and other alphabets, in names, paths and reasons."""
    reasons = ["plain", 'a "quoted" one\\', "two\nlines\tand\x7f\x00\x1b[31m", "Ελέγχθηκε", "'''", "#"]
    models = {
        f"m {number}.{reason[:9]}": LockedModel(
            "folder",
            None,
            {'a "b"/ü.json': Digest(1, "0" * 64)},
            {},
            Approval("o'neil", "2026-05-03T10:00:00+00:00", reason),
        )
        for number, reason in enumerate(reasons)
    }
    back = parse_lock(to_toml(models))
    assert back == models and [model.approval for model in back.values()] == [m.approval for m in models.values()]


@pytest.mark.parametrize(
    "approved", ['"me"', "{}", '{by = "me"}', '{by = "me", at = "noon"}', '{by = 1, at = "2026-05-03"}']
)
def test_an_approval_that_says_nothing_is_refused(file: Path, approved: str) -> None:
    """The lock is not read without it."""
    text = to_toml({"m": _model()}).replace('"folder"', f'"folder"\napproved = {approved}')
    file.write_text(text)
    with pytest.raises(SourceError, match="'m' does not say who approved it, and when"):
        Lock.read(file)


def test_a_child_that_was_forked_meanwhile_keeps_no_lock(file: Path) -> None:
    """Who writes a lock file next waits for its writer, and not for the writer's children."""
    file.write_text("")
    reading, writing = os.pipe()
    with lock_file_itself(file):
        child = os.fork()
        if not child:
            os.close(writing)
            os.read(reading, 1)  # until the parent has closed its end
            os._exit(0)
    try:
        with file.open("rb") as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_a_lock_is_parsed_once(file: Path) -> None:
    """While its bytes are the same, each reader has its own table of the same models; a change counts at once."""
    file.write_text(to_toml({"a": _model(1)}))
    first, second = Lock.read(file), Lock.read(file)
    assert first.models["a"] is second.models["a"] and first.models is not second.models
    status = file.stat()
    file.write_text(to_toml({"a": _model(2)}))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Lock.read(file).models == {"a": _model(2)}


def test_what_is_no_file_is_no_lock(file: Path) -> None:
    """A pipe in its place is not waited for."""
    os.mkfifo(file)
    for call in (Lock.current, lambda: Lock(file, {}).approve({"m": _model()})):
        with pytest.raises(SourceError, match="it is not a plain file"):
            call()
    file.unlink()
    file.mkdir()
    with pytest.raises(SourceError, match="medvllm.lock cannot be read: Is a directory"):
        Lock.current()


def test_a_required_lock_is_not_the_one_that_lies_about(
    registry: ModelRegistry, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that brought its own lock nothing is approved, until somebody says that the lock is theirs."""
    folder = tiny.bert_encoder(tmp_path / "got" / "m")
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    monkeypatch.chdir(folder.parent)
    registry.lock(folder)
    assert (folder.parent / "medvllm.lock").exists() and registry.load_model(folder)
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    with pytest.raises(
        DigestMismatchError, match="Or, if the lock in this folder is yours: export MEDVLLM_LOCK_FILE=(.*)"
    ) as error:
        registry.load_model(folder)
    assert f"is not in {home / 'medvllm' / 'medvllm.lock'}" in str(error.value)
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(error.value).rpartition("=")[2])
    assert registry.load_model(folder)
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    registry.lock(folder)
    assert registry.load_model(folder) and (home / "medvllm" / "medvllm.lock").exists()


def test_a_working_directory_that_is_gone_has_no_lock(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models load there, and a lock needs a stated place."""
    folder = tiny.bert_encoder(tmp_path / "m")
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        assert registry.load_model(str(folder))
        with pytest.raises(MedVLLMError, match="cannot be written"):
            registry.lock(str(folder))
    finally:
        os.chdir(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="another user is made by root")
def test_a_working_directory_that_cannot_be_searched_has_no_lock(tmp_path: Path) -> None:
    """As a service that was started in root's own folder has it."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o700)
    code = "import os; from medvllm.sources import Lock; os.chdir({!r}); os.setuid(4242); print(Lock.current().models)"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("MEDVLLM_")}
    environment["MEDVLLM_HOME"] = "/nonexistent/medvllm"
    run = subprocess.run(
        [sys.executable, "-c", code.format(str(closed))], env=environment, capture_output=True, text=True, timeout=60
    )
    assert run.stdout == "{}\n", run.stderr


@pytest.mark.parametrize("path", ["share/medvllm.lock", "link"])
def test_a_lock_whose_folder_is_not_there_is_no_empty_lock(
    path: str, home: Path, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named or by a link in the working directory: its share is not mounted, and nothing loads until it is."""
    folder = tiny.bert_encoder(home / "m")
    if path == "link":
        monkeypatch.delenv("MEDVLLM_LOCK_FILE")
        monkeypatch.chdir(home)
        (home / "medvllm.lock").symlink_to("share/approved.lock")
    else:
        monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(home / path))
    for ask in (registry.load_model, registry.lock, registry.verify):
        with pytest.raises(SourceError, match=r"Lock .* does not exist.*folder .*share\.\n.*mkdir -p"):
            ask(str(folder))
    (home / "share").mkdir()
    registry.lock(str(folder))
    assert registry.load_model(str(folder)) is not None and registry.verify() == {str(folder): {}}

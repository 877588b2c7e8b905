"""What is kept on the disk: it is listed with its users, freed when nobody uses it, and private."""

import gc
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import scan_cache_dir

from medvllm.engine.model_runner import ModelRegistry
from medvllm.sources.digest_cache import digest_cache, open_digest_cache
from medvllm.sources.fingerprint import read_stamp
from tests.support import tiny
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub
from tests.support.users import NOBODY, another_user, reachable

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="other users and groups need root")


class _Cache:
    """The command, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *words: str) -> Any:
        from medvllm.cli import main

        self._monkeypatch.setattr(sys, "argv", ["medvllm", "cache", *words, "--json"])
        self._capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            assert not end.code, self._capsys.readouterr().err
        return json.loads(self._capsys.readouterr().out)

    def kinds(self) -> dict[str, tuple[str, ...]]:
        """What is kept, and by whom it is used; leftovers by name."""
        return {
            each["name"] if each["kind"] in ("leftovers", "Hub") else each["kind"]: tuple(each["used_by"])
            for each in self("list")
        }


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub: LoopbackHub) -> _Cache:
    """`medvllm cache`."""
    return _Cache(monkeypatch, capsys)


def test_what_a_version_needs_stays_until_the_last_one_goes(cache: _Cache, home: Path, tmp_path: Path) -> None:
    """A copy, what its pickle was converted to, and its weights in another dtype; a dry run changes nothing."""
    registry = ModelRegistry()
    folder = convert(tiny.bert_encoder(tmp_path / "m", weights="bin"))
    for text in ("first", "second"):
        registry.register(
            "m", "custom", model_path=str(folder), copy=True, persist=True, replace=True, description=text
        )
    registry.load_model("m", dtype="bfloat16")
    registry.clear_cache()
    users = {users for kind, users in cache.kinds().items() if kind != "views"}
    assert users == {("m@1", "m@2")} or users == {("m@2", "m@1")}, cache.kinds()
    assert cache("prune") == []
    registry.unregister("m@2", persist=True)
    assert cache("prune") == [] and cache.kinds()["models"] == ("m@1",)
    registry.unregister("m", persist=True)
    before = sorted(home.rglob("*"))
    listed = {each["kind"]: each["size_bytes"] for each in cache("list") if each["is_removable"]}
    removed = {each["kind"]: each["size_bytes"] for each in cache("prune", "--dry-run")}
    assert sorted(home.rglob("*")) == before and listed == removed and min(removed.values()) > 10_000
    assert {each["kind"] for each in cache("prune")} == {"models", "converted", "prepared"}
    assert set(cache.kinds()) <= {"views"} and cache("prune") == []


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        gc.collect()
        time.sleep(0.05)


def test_what_is_locked_or_in_memory_is_in_use(cache: _Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is no entry: its weights in another dtype are the lock's, or those of a process that has them."""
    registry = ModelRegistry()
    folder = tiny.bert_encoder(tmp_path / "m", seed=4)
    kept = registry.load_model(folder, dtype="bfloat16")
    assert f"process {os.getpid()}" in cache.kinds()["prepared"] and cache("prune") == []
    del kept
    registry.clear_cache()
    _until(lambda: not cache.kinds()["prepared"])  # the process notes soon what it has let go
    registry.lock(folder)
    assert cache.kinds()["prepared"] == (f"lock of {folder}",) and cache("prune") == []
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(tmp_path / "another.lock"))
    assert [each["kind"] for each in cache("prune")] == ["prepared"]
    assert registry.load_model(folder, dtype="bfloat16") is not None


def test_an_entry_of_the_hub_keeps_what_was_made_of_its_commits(
    cache: _Cache, hub: LoopbackHub, home: Path, tmp_path: Path
) -> None:
    """The Hub's cache is listed by repository, and never pruned: it is other programs' too."""
    hub.add("acme/m", tiny.bert_encoder(tmp_path / "m", seed=5))
    registry = ModelRegistry()
    registry.register("m", "custom", model_path="acme/m", persist=True)
    registry.load_model("m", dtype="bfloat16")
    registry.clear_cache()
    _until(lambda: cache.kinds()["prepared"] == ("m@1",))
    assert cache.kinds()["acme/m"] == ("m@1",) and cache("prune") == []
    registry.unregister("m", persist=True)
    assert [each["kind"] for each in cache("prune")] == ["prepared"] and cache.kinds()["acme/m"] == ()


def test_what_dead_processes_left_goes_after_a_day(cache: _Cache, home: Path) -> None:
    """Of what is younger, some process may still be at work; the lock file of approvals is no leftover."""
    medvllm = home / "medvllm"
    key = "0" * 40
    left = [".catalog.db.0123456789abcdef.partial", "run/1.partial", f"models/{key}.lock", "catalog.db.1.backup"]
    stays = ["catalog.db.2.backup", "medvllm.lock", "config.toml"]
    for name in (*left, *stays):
        (medvllm / name).parent.mkdir(parents=True, exist_ok=True)
        (medvllm / name).write_text("version = 1\n" if name == "medvllm.lock" else "")
    (medvllm / "converted" / f"{key}.0a0b0c0d").mkdir(parents=True)
    assert cache("prune") == []
    yesterday = time.time() - 90_000
    for name in (*left, *stays, f"converted/{key}.0a0b0c0d"):
        os.utime(medvllm / name, (yesterday, yesterday - (name in left)))
    assert {each["name"] for each in cache("prune")} == {Path(name).name for name in left} | {f"{key}.0a0b0c0d"}
    assert sorted(file.name for file in medvllm.iterdir() if file.is_file()) == sorted(stays)


def test_an_import_leaves_the_hubs_cache_tidy(hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    """Other tools find nothing in it that they do not know."""
    hub.add("acme/m", tiny.bert_encoder(tmp_path / "m"))
    ModelRegistry().lock("acme/m")
    ModelRegistry().export(tmp_path / "b.tar", "acme/m")
    ModelRegistry().import_bundle(tmp_path / "b.tar")
    found = scan_cache_dir(home / "hub")
    assert found.warnings == [] and [repo.repo_id for repo in found.repos] == ["acme/m"]


def _loaded(home: Path, tmp_path: Path) -> set[tuple[str, int]]:
    """Use everything that writes to the home folder; return the modes of what is there then, by kind."""
    registry = ModelRegistry()
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.register("m", "custom", model_path=str(folder), copy=True, persist=True)
    registry.load_model("m", dtype="bfloat16")
    registry.lock("m")
    medvllm = home / "medvllm"
    while not any((medvllm / "run").glob("*")):  # the record of this process comes a moment later
        time.sleep(0.01)
    registry.clear_cache()
    while any((medvllm / "run").glob("*")):  # and goes a moment later
        time.sleep(0.01)
    paths = [medvllm, *(path for path in medvllm.rglob("*") if not path.is_symlink())]
    assert {"catalog.db", "digests.db", "models", "prepared", "model.safetensors"} <= {p.name for p in paths}
    return {("folder" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode)) for path in paths}


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_home_is_private_whatever_the_umask(home: Path, tmp_path: Path, umask: int) -> None:
    """Folders and files, the database's own beside it too."""
    before = os.umask(umask)
    try:
        assert _loaded(home, tmp_path) == {("folder", 0o700), ("file", 0o600)}
    finally:
        os.umask(before)


@needs_root
def test_a_group_may_share_a_home(home: Path, tmp_path: Path) -> None:
    """In a folder with the setgid bit the group keeps its rights: another member registers and copies there."""
    shared = home / "medvllm"
    shared.mkdir()
    os.chown(shared, 0, 7777)
    shared.chmod(0o2770)
    before = os.umask(0o022)
    try:
        modes = _loaded(home, tmp_path)
        assert {mode for kind, mode in modes if kind == "folder"} <= {0o2770, 0o700}, modes  # 0700: of records
        assert {path.stat().st_gid for path in shared.rglob("*") if not path.is_symlink()} == {7777}
        assert {mode for kind, mode in modes if kind == "file"} == {0o660}
        reachable(tmp_path)
        home.chmod(0o777)
        with another_user(NOBODY, 7777):
            registry = ModelRegistry()
            folder = tiny.bert_encoder(Path(os.path.join(home, "theirs")), seed=1)
            registry.register("theirs", "custom", model_path=str(folder), copy=True, persist=True)
            registry.register("m2", "custom", model_path=str(folder), copy=True, persist=True)
            assert registry.load_model("theirs") is not None
    finally:
        os.umask(before)


def test_a_digest_cache_that_somebody_holds_costs_a_load_a_moment(home: Path, tmp_path: Path) -> None:
    """It is waited for once, not at each of its questions."""
    registry = ModelRegistry()
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.load_model(folder)
    registry.clear_cache()
    hold = f"import sqlite3, sys; c = sqlite3.connect({str(home / 'medvllm' / 'digests.db')!r}); " + (
        "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
    )
    open_digest_cache.cache_clear()
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert ModelRegistry().load_model(folder) is not None
        assert digest_cache().is_paused
        holder.communicate()
    open_digest_cache.cache_clear()  # as in a process of its own
    assert digest_cache().memory_estimate("nothing") is None


@pytest.mark.parametrize("damage", ["garbage", "page", "columns", "folder", "fifo"])
def test_a_digest_cache_that_is_none_costs_nobody_a_model(home: Path, tmp_path: Path, damage: str) -> None:
    """A damaged one is begun anew, with its journal; what is no file is left alone."""
    from medvllm.sources.digest_cache import DigestCache

    folder, file = tiny.bert_encoder(tmp_path / "m"), home / "medvllm" / "digests.db"
    file.parent.mkdir()
    if damage == "folder":
        file.mkdir()
    elif damage == "fifo":
        os.mkfifo(file)
    elif damage == "garbage":
        file.write_bytes(b"no database" * 1000)
    else:
        DigestCache(file).keep_digests({(1, i, 3, 4, 5): "ab" * 32 for i in range(1000)})
        if damage == "page":
            content = bytearray(file.read_bytes())
            content[4096:] = os.urandom(len(content) - 4096)
            file.write_bytes(bytes(content))
        else:
            import sqlite3

            connection = sqlite3.connect(file)
            connection.executescript("DROP TABLE digests; CREATE TABLE digests (other TEXT)")
            connection.close()
    assert ModelRegistry().load_model(folder) is not None
    own = DigestCache(file)
    own.keep_digests({(1, 2, 3, 4, 5): "cd" * 32})
    own.keep_digests({(1, 2, 3, 4, 5): "cd" * 32})
    remembered = DigestCache(file).digests([(1, 2, 3, 4, 5)])
    assert bool(remembered) == (damage not in ("folder", "fifo"))


def test_a_file_from_the_future_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever packed it had a clock that was ahead; the machine's own time of its last change tells."""
    from medvllm.sources import digest, hashing

    folder = tiny.bert_encoder(tmp_path / "m")
    for file in folder.iterdir():
        os.utime(file, (time.time() + 1e6, time.time() + 1e6))
    monkeypatch.setattr(hashing, "_SETTLED_NS", 0)
    digest.digest_files(folder, ["config.json"])
    assert digest_cache().digests([read_stamp(folder / "config.json")])

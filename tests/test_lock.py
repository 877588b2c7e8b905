"""The lock: what was approved, written for review; a load of anything else is refused before a byte is parsed."""

import hashlib
import json
import os
import sqlite3
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError, DigestMismatchError, SourceError
from medvllm.sources.digest_cache import open_digest_cache
from tests.support import tiny
from tests.support.clock import HurriedClock
from tests.support.console import command
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub


@pytest.fixture
def file(home: Path) -> Path:
    """Where the test's lock lies."""
    return home / "medvllm.lock"


@pytest.fixture
def acme(hub: LoopbackHub, tmp_path: Path) -> LoopbackHub:
    """A Hub with a model in safetensors and one whose weights are a pickle."""
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
    hub.add("acme/bin", convert(tiny.bert_masked_lm(tmp_path / "bin", weights="bin")))
    return hub


def _flip(file: Path, at: int = -1) -> None:
    """Change one byte in place; size and modification time stay."""
    status = os.stat(file)
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(bytes(content))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_lock_holds_commit_size_and_digest_of_every_file(
    registry: ModelRegistry, acme: LoopbackHub, file: Path, tmp_path: Path
) -> None:
    """Of the pickle that was approved, and of what was made of it."""
    registry.lock("acme/bin", "acme/bert")
    models = tomllib.loads(file.read_text())["models"]
    assert list(models) == ["acme/bert", "acme/bin"]
    assert models["acme/bert"]["commit"] == acme.commit("acme/bert")
    assert set(models["acme/bert"]["files"]) == {
        *("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt")
    }
    assert models["acme/bert"]["files"]["vocab.txt"]["size"] == (tmp_path / "acme" / "vocab.txt").stat().st_size
    assert "pytorch_model.bin" in models["acme/bin"]["files"]
    assert set(models["acme/bin"]["converted"]) == {"model.safetensors"}
    assert registry.verify() == {"acme/bert": {}, "acme/bin": {}}


def test_a_lock_is_stable(registry: ModelRegistry, acme: LoopbackHub, file: Path) -> None:
    """Locking again, in another order or one by one, changes no byte; other models stay."""
    registry.lock("acme/bert")
    first = file.read_bytes()
    registry.lock("acme/bin")
    both = file.read_bytes()
    os.utime(file, (1, 1))
    registry.lock("acme/bin", "acme/bert")
    assert file.read_bytes() == both and os.stat(file).st_mtime == 1
    added, kept = set(both.splitlines()) - set(first.splitlines()), set(first.splitlines()) - set(both.splitlines())
    assert added and not kept


def test_what_a_killed_writer_left_is_removed(registry: ModelRegistry, acme: LoopbackHub, file: Path) -> None:
    """By the next one that writes the file; another file's stays."""
    left, other = (file.with_name(f".{name}.0123456789abcdef.partial") for name in (file.name, "another"))
    left.write_text("version = 1")
    other.write_text("")
    registry.lock("acme/bert")
    assert other.exists() and not left.exists()


def test_locks_written_at_once_are_all_there(registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path) -> None:
    """Eight threads, a model each."""
    for i in range(8):
        tiny.bert_encoder(tmp_path / f"m{i}", seed=i)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: registry.lock(str(tmp_path / f"m{i}")), range(8)))
    assert len(registry.verify()) == 8 and not any(registry.verify().values())


def test_a_locked_model_keeps_its_commit(
    registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path, home: Path
) -> None:
    """On another machine too: the branch has moved, the lock names the commit. Another commit is refused."""
    locked = registry.lock("acme/bert")["acme/bert"].commit
    moved = acme.add("acme/bert", tiny.bert_masked_lm(tmp_path / "new", seed=1))
    (home / "medvllm" / "digests.db").unlink()
    other = ModelRegistry()
    with other.lease("acme/bert") as lease:
        assert lease.receipt.snapshot == f"acme/bert@{locked}"
    with pytest.raises(DigestMismatchError, match=f"locked to acme/bert at {locked and locked[:7]}, but acme/bert at"):
        other.load_model("acme/bert", revision=moved)
    other.register("acme/bert", "generic", model_path="acme/bin")
    with pytest.raises(DigestMismatchError, match="acme/bin at .* was asked for.\nTo approve .*: medvllm lock"):
        other.load_model("acme/bert")


def test_refresh_moves_a_branch_and_the_lock_still_holds(
    registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path, file: Path
) -> None:
    """Without a lock the branch stays where it was first seen, in later processes too, until it is asked anew."""
    first = registry.pull("acme/bert").name
    moved = acme.add("acme/bert", tiny.bert_masked_lm(tmp_path / "new", seed=1))
    assert ModelRegistry().pull("acme/bert").name == first
    assert registry.pull("acme/bert", refresh=True).name == moved
    registry.lock("acme/bert")
    assert tomllib.loads(file.read_text())["models"]["acme/bert"]["commit"] == moved


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "model.safetensors"])
def test_a_changed_folder_is_refused_before_it_is_parsed(registry: ModelRegistry, tmp_path: Path, name: str) -> None:
    """The damaged config would be no JSON: the error is that of the lock."""
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.lock(folder)
    assert registry.load_model(folder)
    _flip(folder / name, 0)
    with pytest.raises(DigestMismatchError, match=rf"are not the locked ones: {name} has the SHA-256"):
        registry.load_model(folder)
    assert list(registry.verify(folder).values()) == [
        {name: next(iter(registry.verify().values()))[name]},
    ]


def test_files_that_come_or_go_are_differences(registry: ModelRegistry, tmp_path: Path) -> None:
    """A tokenizer file that was not there would change what the model reads."""
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.lock(folder)
    (folder / "added_tokens.json").write_text("{}")
    (folder / "vocab.txt").unlink()
    assert registry.verify(folder) == {str(folder): {"added_tokens.json": "was not there", "vocab.txt": "is missing"}}
    with pytest.raises(DigestMismatchError):
        registry.load_tokenizer(folder)


def test_converted_weights_are_held_too(registry: ModelRegistry, acme: LoopbackHub, home: Path) -> None:
    """A converted copy that was damaged is made again; one that was exchanged with its record is refused."""
    registry.lock("acme/bin")
    made = next((home / "medvllm" / "converted").glob("*/"))
    _flip(made / "model.safetensors")
    assert "SHA-256" in registry.verify("acme/bin")["acme/bin"]["model.safetensors"]
    assert registry.load_model("acme/bin") and registry.verify("acme/bin") == {"acme/bin": {}}
    registry.clear_cache()
    _flip(made / "model.safetensors")
    record = json.loads((made / "conversion.json").read_text())
    forged = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
    record["converted"][0]["sha256"] = forged
    (made / "conversion.json").write_text(json.dumps(record))
    with pytest.raises(DigestMismatchError, match="The converted weights of model 'acme/bin' are not the locked ones"):
        ModelRegistry().load_model("acme/bin", dtype="bf16")


def test_only_locked_models_when_so_set(
    registry: ModelRegistry, acme: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
) -> None:
    """Also when there is no lock at all; locking itself stays possible."""
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    for name in ("acme/bert", str(tmp_path / "acme")):
        with pytest.raises(DigestMismatchError, match=r"only locked models may be loaded \(MEDVLLM_REQUIRE_LOCK\)"):
            registry.load_model(name)
    registry.lock("acme/bert")
    assert registry.load_model("acme/bert")
    with pytest.raises(DigestMismatchError, match="'acme/bin' is not in"):
        registry.load_model("acme/bin")


def test_a_folder_beside_the_lock_travels_with_it(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project that holds its models and its lock can be moved."""
    project = tmp_path / "project"
    tiny.bert_encoder(project / "models" / "bert")
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(project / "medvllm.lock"))
    registry.lock(project / "models" / "bert")
    moved = project.rename(tmp_path / "moved")
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(moved / "medvllm.lock"))
    assert registry.verify() == {str(moved / "models" / "bert"): {}}
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    assert registry.load_model(moved / "models" / "bert")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("version = 2\n", "its version is 2"),
        ("version = 1\nmodels = 3\n", "'models' is not a table"),
        ("nonsense", "nonsense|Expected|Invalid"),
        ('version = 1\n[models.m]\nsource = "a/b"\n', "a repository without one"),
        ('version = 1\n[models.m]\nsource = "a/b"\ncommit = "main"\n', "its commit is not valid"),
        (f'version = 1\n[models.m]\nsource = "a/b@v1"\ncommit = "{40 * "0"}"\n', "which is not a repository"),
        ('version = 1\n[models.m]\nsource = "folder"\n[models.m.files]\n', "has no files"),
        ('version = 1\n[models.m]\nsource = "folder"\nfiles = {a = {size = 1, sha256 = "x"}}\n', "size and SHA-256"),
        ('version = 1\n[models.m]\nsource = "folder"\nsha = 1\n', "unknown keys"),
    ],
)
def test_a_lock_that_cannot_be_read_stops_every_load(
    registry: ModelRegistry, tmp_path: Path, file: Path, text: str, reason: str
) -> None:
    """It is never taken for an empty one, nor overwritten."""
    file.write_text(text)
    folder = tiny.bert_encoder(tmp_path / "m")
    for call in (registry.load_model, registry.lock, registry.verify):
        with pytest.raises(SourceError, match=rf"(?s)medvllm.lock cannot be read: .*({reason})"):
            call(folder)
    assert file.read_text() == text


def test_names_of_any_kind_survive_the_file(registry: ModelRegistry, tmp_path: Path) -> None:
    """Dots, quotes, spaces and other alphabets."""
    folder = tiny.bert_encoder(tmp_path / "m")
    for name in ("bert.v1", 'a "quoted" name', "моя модель", "a = b # c"):
        registry.register(name, "generic", model_path=folder)
    assert set(registry.lock("bert.v1", 'a "quoted" name', "моя модель", "a = b # c")) == set(registry.verify())


def test_a_check_of_nothing_does_not_pass(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`medvllm verify` ends with 1 where there is no lock file, or an empty one."""
    done = command(monkeypatch, "verify")
    assert done.code == 1 and "Nothing was verified" in done.err and "does not exist" in done.err
    (home / "medvllm.lock").write_text("version = 1\n")
    done = command(monkeypatch, "verify", "--json")
    assert done.code == 1 and done.out == "" and "names no model" in done.err


def test_verify_names_what_is_not_locked(registry: ModelRegistry, tmp_path: Path) -> None:
    """And says how to approve it."""
    with pytest.raises(CatalogError, match="is not in .*The file does not exist.\nTo approve it: medvllm lock"):
        registry.verify(tiny.bert_encoder(tmp_path / "m"))


def test_an_unchanged_file_is_hashed_once(
    registry: ModelRegistry, tmp_path: Path, home: Path, hurried: HurriedClock
) -> None:
    """Its digest is remembered while device, inode, size and times stay; `verify` hashes again all the same."""
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.lock(folder)
    digests_file = home / "medvllm" / "digests.db"
    with closing(sqlite3.connect(digests_file, isolation_level=None)) as digests:
        assert digests.execute("SELECT count(*) FROM digests").fetchone() == (0,)  # too fresh to be told from a change
        hurried.sleep(2.1)
        registry.lock(folder)
        assert digests.execute("SELECT count(*) FROM digests").fetchone() == (4,)
        digests.execute("UPDATE digests SET sha256 = ?", ("0" * 64,))
    open_digest_cache.cache_clear()  # as in a process of its own
    with pytest.raises(DigestMismatchError, match="SHA-256 000000000000"):
        registry.load_model(folder)
    assert registry.verify(folder) == {str(folder): {}}
    assert registry.load_model(folder)


def test_a_reload_is_checked_against_the_lock_of_the_moment(
    registry: ModelRegistry, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a call resolved to is remembered only while the lock and the files are as they were."""
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.register("m", "clinical", model_path=str(folder))
    registry.load_model("m")
    registry.lock("m")
    registry.evict("m")
    assert registry.load_model("m") is not None
    registry.evict("m")
    digest = registry.lock("m")["m"].files["config.json"].sha256
    file.write_text(file.read_text().replace(digest, "0" * 64))
    with pytest.raises(DigestMismatchError, match="not the locked ones: config.json"):
        registry.load_model("m")
    file.unlink()
    assert registry.load_model("m") is not None
    registry.evict("m")
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    with pytest.raises(DigestMismatchError, match="only locked models may be loaded"):
        registry.load_model("m")


def test_a_damaged_digest_cache_is_begun_anew(
    registry: ModelRegistry, tmp_path: Path, home: Path, hurried: HurriedClock
) -> None:
    """It only saves work."""
    (home / "medvllm").mkdir()
    (home / "medvllm" / "digests.db").write_bytes(b"not a database" * 100)
    folder = tiny.bert_encoder(tmp_path / "m")
    hurried.sleep(2.1)
    registry.lock(folder)
    with closing(sqlite3.connect(home / "medvllm" / "digests.db")) as digests:
        assert digests.execute("SELECT count(*) FROM digests").fetchone()[0] >= 1


def test_a_home_that_cannot_be_written_costs_only_time(acme: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits are then remembered by the process alone."""
    monkeypatch.setenv("MEDVLLM_HOME", "/proc/medvllm")
    registry = ModelRegistry()
    model: Any = registry.load_model("acme/bert")
    acme.log.clear()
    registry.clear_cache()
    assert registry.load_model("acme/bert") is model and acme.log == []

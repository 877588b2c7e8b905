"""A Hub, a network and a disk that fail: nothing wrong is loaded or left, and the next call completes."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import (
    CatalogError,
    DigestMismatchError,
    GatedModelError,
    HubUnreachableError,
    OutputError,
    SourceError,
)
from tests.support import tiny, warm
from tests.support.clock import HurriedClock
from tests.support.conversions import convert
from tests.support.disks import mounted_disk
from tests.support.loopback import LoopbackHub
from tests.support.spread import spread


@pytest.fixture
def acme(hub: LoopbackHub, hurried: HurriedClock, tmp_path: Path) -> LoopbackHub:
    """A Hub with one tiny model, acme/bert."""
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
    return hub


def _gets(hub: LoopbackHub, file: str) -> int:
    return len([r for r in hub.requests(file) if r.method == "GET"])


def _repository(home: Path) -> Path:
    return home / "hub" / "models--acme--bert"


@pytest.mark.parametrize(
    ("pattern", "kind", "argument", "method"),
    spread(
        [
            ("*/model.safetensors", "truncate", 1000, "GET"),
            ("*/model.safetensors", "reset", 50_000, "GET"),
            ("*/model.safetensors", "drop", None, "GET"),
            ("*/model.safetensors", "status", 503, "GET"),
            ("*/model.safetensors", "status", 500, "GET"),
            ("*/model.safetensors", "throttle", 0, "GET"),
            ("*/model.safetensors", "drop", None, "HEAD"),
            ("*/model.safetensors", "status", 503, "HEAD"),
            ("*/vocab.txt", "flip", 7, "GET"),
            ("*/model.safetensors", "flip", 100_000, "GET"),
            ("*/revision/*", "status", 503, "GET"),
            ("*/revision/*", "throttle", 1, "GET"),
            ("*/revision/*", "drop", None, "GET"),
            ("*/tree/*", "status", 502, "GET"),
            ("*/tree/*", "drop", None, "GET"),
        ],
        2,
    ),
)
def test_a_fault_that_passes_is_not_noticed(
    registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path, pattern: str, kind: Any, argument: Any, method: str
) -> None:
    """One short body, reset, busy answer or flipped byte: the same call tries again, and gets the right bytes."""
    acme.fault(pattern, kind, argument, times=1, method=method)
    folder = registry.pull("acme/bert")
    for file in ("model.safetensors", "vocab.txt", "config.json"):
        assert (folder / file).read_bytes() == (tmp_path / "acme" / file).read_bytes()
    assert registry.load_model("acme/bert")


@pytest.mark.parametrize(
    ("kind", "argument", "error"),
    spread(
        [
            ("reset", 50_000, HubUnreachableError),
            ("drop", None, HubUnreachableError),
            ("status", 503, HubUnreachableError),
            ("throttle", 0, HubUnreachableError),
            ("flip", 100_000, DigestMismatchError),
            ("status", 404, SourceError),
        ],
        2,
    ),
)
def test_a_fault_that_stays_is_an_error_and_the_next_call_completes(
    registry: ModelRegistry, acme: LoopbackHub, home: Path, kind: Any, argument: Any, error: type[Exception]
) -> None:
    """The tries are bounded; what came wrong is not left for anybody to load."""
    acme.fault("*/model.safetensors", kind, argument)
    with pytest.raises(error, match="acme/bert"):
        registry.load_model("acme/bert")
    assert _gets(acme, "model.safetensors") <= 24
    assert list(_repository(home).rglob("*.incomplete")) == []
    with pytest.raises(SourceError):
        registry.load_model("acme/bert")
    acme.heal()
    assert registry.load_model("acme/bert")


@pytest.mark.parametrize("damage", ["flip", "cut", "replace"])
def test_a_file_damaged_in_the_cache_is_fetched_again(
    registry: ModelRegistry, acme: LoopbackHub, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when its size and modification time are those of before."""
    file = registry.pull("acme/bert") / "model.safetensors"
    content, times = file.read_bytes(), os.stat(file)
    if damage == "flip":
        file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "cut":
        os.truncate(file, 1000)
    else:
        file.unlink()
        shutil.copyfile(tiny.bert_masked_lm(tmp_path / "other", seed=1) / "model.safetensors", file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert registry.load_model("acme/bert")
    assert file.read_bytes() == content
    # A file put in place of the link to the blob leaves the blob as it was.
    assert _gets(acme, "model.safetensors") == (1 if damage == "replace" else 2)
    assert "model.safetensors of 'acme/bert'" in caplog.text and "fetching it again" in caplog.text


def test_a_file_that_is_not_the_commits_is_not_read(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """A tokenizer file that somebody puts into the cache would change what the model reads."""
    before = registry.load_tokenizer("acme/bert")("blood pressure")["input_ids"]
    (registry.pull("acme/bert") / "added_tokens.json").write_text('{"blood pressure": 6}')
    other = ModelRegistry()
    assert other.load_tokenizer("acme/bert")("blood pressure")["input_ids"] == before
    with other.lease("acme/bert") as lease:
        assert "added_tokens.json" not in lease.receipt.proof.files


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"size": 674', '"size": 675'),
        ("vocab.txt", "other.txt"),
        ('"files"', '"filed"'),
        (
            "{",
            "[",
        ),
        ("e", "d"),
    ],
)
def test_a_damaged_listing_is_asked_for_anew(
    registry: ModelRegistry, acme: LoopbackHub, home: Path, old: str, new: str
) -> None:
    """Whether it cannot be read, or says something else than before; the weights are not fetched again."""
    folder = registry.pull("acme/bert")
    listing = _repository(home) / "trees" / f"{folder.name}.json"
    sound = listing.read_text()
    listing.write_text(sound.replace(old, new))
    assert listing.read_text() != sound
    acme.log.clear()
    assert registry.load_model("acme/bert") and listing.read_text() == sound
    assert _gets(acme, "/tree/") == 1 and _gets(acme, "model.safetensors") == 0


def test_damage_without_a_hub_is_an_error_that_names_the_file(acme: LoopbackHub, home: Path) -> None:
    """Offline nothing can be fetched again: the model is refused."""
    registry = ModelRegistry()
    file = registry.pull("acme/bert") / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run = _python("registry.load_model('acme/bert')", home, HF_HUB_OFFLINE="1")
    assert "DigestMismatchError: Snapshot of 'acme/bert' at" in run.stderr
    assert "is damaged: model.safetensors has the digest" in run.stderr


def _python(statement: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"from medvllm.engine.model_runner import registry\n{statement}"
    return warm.run("-c", code, **{"HF_HUB_CACHE": str(home / "hub"), **environment})


@pytest.mark.parametrize("status", [401, 403])
def test_refused_without_a_reason(registry: ModelRegistry, acme: LoopbackHub, status: int) -> None:
    """A token is what may be missing; nothing is tried twice."""
    acme.fault("*/config.json", "status", status, method="HEAD")
    acme.fault("*/config.json", "status", status)
    with pytest.raises(GatedModelError, match=rf"refuses access to 'acme/bert' \({status}\)"):
        registry.load_model("acme/bert")


def test_a_hub_that_goes_away_between_two_tries(registry: ModelRegistry, tmp_path: Path, home: Path) -> None:
    """Ends the tries at once instead of after all waits."""
    with ThreadPoolExecutor(1) as pool:
        with LoopbackHub() as hub:
            hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
            hub.fault("*/model.safetensors", "reset", 50_000)
            pulling = pool.submit(_python, "registry.pull('acme/bert')", home, HF_ENDPOINT=hub.url)
            deadline = time.monotonic() + 60
            while not _gets(hub, "model.safetensors"):
                assert time.monotonic() < deadline and not pulling.done()
                time.sleep(0.01)
        assert "HubUnreachableError" in pulling.result().stderr


def test_a_slow_hub_is_waited_for(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """A body that comes a thousand bytes at a time."""
    acme.fault("*/model.safetensors", "drip", 0.002)
    assert registry.load_model("acme/bert") and _gets(acme, "model.safetensors") == 1


def test_partial_files_of_dead_downloads_are_swept(registry: ModelRegistry, acme: LoopbackHub, home: Path) -> None:
    """But not those of a download that is under way: its lock is held."""
    blobs, locks = _repository(home) / "blobs", home / "hub" / ".locks" / "models--acme--bert"
    blobs.mkdir(parents=True)
    locks.mkdir(parents=True)
    dead, alive = blobs / f"{'a' * 64}.12345678.incomplete", blobs / f"{'b' * 64}.12345678.incomplete"
    dead.write_bytes(b"x")
    alive.write_bytes(b"x")
    with FileLock(locks / f"{'b' * 64}.lock"):
        registry.pull("acme/bert")
        assert alive.exists() and not dead.exists()


def test_four_processes_pull_one_model_once(acme: LoopbackHub, home: Path) -> None:
    """One GET of each file."""
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: _python("registry.pull('acme/bert')", home), range(4)))
    assert [run.returncode for run in runs] == [0] * 4
    assert {_gets(acme, file) for file in ("/model.safetensors", "/vocab.txt", "/config.json")} == {1}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    with mounted_disk(tmp_path / "disk", "64k") as disk:
        yield disk


def test_a_full_disk_is_an_error_and_leaves_nothing(acme: LoopbackHub, home: Path, small_disk: Path) -> None:
    """With the system's own words; afterwards the same cache on a larger disk completes."""
    run = _python("registry.pull('acme/bert')", home, HF_HUB_CACHE=str(small_disk))
    assert "SourceError: Model 'acme/bert' could not be stored" in run.stderr and "No space left" in run.stderr
    assert list(small_disk.rglob("*.incomplete")) == []
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    assert _python("registry.load_model('acme/bert')", home, HF_HUB_CACHE=str(small_disk)).returncode == 0


def test_a_full_disk_stops_every_writer_and_leaves_what_was(
    registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export, import, lock and the stored entries: an error of ours, no part of a file, the old content."""
    from huggingface_hub import constants

    registry.export(tmp_path / "b.tar", "acme/bert", unlocked=True)
    with pytest.raises(OutputError, match="cannot be written: .*No space left"):
        registry.export(small_disk / "b.tar", "acme/bert", unlocked=True)
    assert list(small_disk.iterdir()) == []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk / "hub"))
    with pytest.raises(SourceError, match="room for|No space left"):
        ModelRegistry().import_bundle(tmp_path / "b.tar")
    assert [path for path in small_disk.rglob("*") if path.is_file() and path.suffix != ".lock"] == []

    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(small_disk / "medvllm.lock"))
    monkeypatch.setenv("MEDVLLM_HOME", str(small_disk / "medvllm"))
    subprocess.run(["mount", "-o", "remount,size=512k", small_disk], check=True)
    own = ModelRegistry()
    own.lock(tiny.bert_encoder(tmp_path / "one"))
    own.register("stored", "generic", persist=True)
    before, entries = (small_disk / "medvllm.lock").read_bytes(), own.catalog.export()
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(b"x" * 512)
    with pytest.raises(OutputError, match="medvllm.lock' cannot be written: No space left"):
        own.lock(tiny.bert_encoder(tmp_path / "two", seed=1))
    with pytest.raises(CatalogError, match="catalog.db cannot be written: database or disk is full"):
        own.register("more", "generic", persist=True, description="x" * 100_000)
    assert (small_disk / "medvllm.lock").read_bytes() == before and not list(small_disk.rglob("*.partial"))
    assert own.catalog.export() == entries and own.catalog.check_history()[2] == []
    (small_disk / "filler").unlink()
    assert own.lock(tmp_path / "two") and own.register("more", "generic", persist=True)


def test_no_token_leaves_but_to_the_hub(hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    """Bodies are fetched from elsewhere when the Hub redirects there; the token stays. No other service is asked."""
    folder = convert(tiny.bert_masked_lm(tmp_path / "acme", weights="bin"))
    hub.add("acme/bin", folder)
    with LoopbackHub() as outside:
        outside.add("acme/bin", folder)
        hub.fault("*/pytorch_model.bin", "redirect", outside.url)
        run = _python(
            "registry.load_model('acme/bin'); registry.load_tokenizer('acme/bin')", home, HF_TOKEN="hf_secret"
        )
        assert run.returncode == 0, run.stderr
        seen = outside.requests()
    assert [(r.method, r.path.rpartition("/")[2]) for r in seen] == [("GET", "pytorch_model.bin")]
    assert not any("hf_secret" in value for r in seen for value in (r.path, *r.headers.values()))
    assert all(r.headers.get("authorization") == "Bearer hf_secret" for r in hub.requests("/api/models"))
    assert "hf_secret" not in run.stdout + run.stderr

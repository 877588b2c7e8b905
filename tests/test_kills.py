"""SIGKILL at any moment of an operation: nothing wrong is visible, and the next run completes and leaves nothing."""

import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import MedVLLMError
from medvllm.names import parse_name
from medvllm.sources import Lock
from medvllm.sources.bundle import open_bundle
from tests.support import tiny
from tests.support.driver import Driver
from tests.support.loopback import LoopbackHub

SOME, MANY = 1, 50  # rounds of each operation: in every run, and in the slow one; docs/reliability.md says so
counted = pytest.mark.parametrize(
    "rounds",
    [pytest.param(SOME, id="some"), pytest.param(MANY, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)

# What the operations need, so that their time is their own; the cache's folder is each process's own too.
IMPORTS = """
import torch
from huggingface_hub import constants, snapshot_download, HfApi
from medvllm import loading, sources
from medvllm.catalog import entries, exchange, sql
import alembic.command, alembic.config, filelock, httpx2, tomlkit
torch.set_num_threads(1)
"""
CACHE = "from huggingface_hub import constants; constants.HF_HUB_CACHE = os.environ['HF_HUB_CACHE']"


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    """One for all operations."""
    driver = Driver(IMPORTS)
    yield driver
    driver.stop()


@pytest.fixture
def site(tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's folders, of the test and of the processes alike: home, cache and lock."""
    from huggingface_hub import constants

    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("MEDVLLM_HOME", str(site / "medvllm"))
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(site / "medvllm.lock"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(site / "hub"))
    return site


def _rounds(
    driver: Driver,
    site: Path,
    statement: str,
    rounds: int,
    prepare: Callable[[], object],
    check: Callable[[bool], None],
) -> None:
    """Kill the statement at moments spread over its usual time, each time from the same beginning.

    `check` is told whether the statement has completed: first after the kill, then after the next run.
    """
    environment = {name: os.environ[name] for name in ("MEDVLLM_HOME", "MEDVLLM_LOCK_FILE", "HOME", "HF_ENDPOINT")}
    environment["HF_HUB_CACHE"] = str(site / "hub")
    statement = f"{CACHE}; {statement}"

    def begin() -> None:
        for left in site.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        prepare()

    usual_s = float("inf")
    for _ in range(1 if rounds == SOME else 2):  # the first is slower
        begin()
        status, seconds = driver.run(statement, environment)
        assert status == 0
        check(True)
        usual_s = min(usual_s, seconds)
    chance, killed = random.Random(0), 0
    for _ in range(rounds):
        begin()
        status, _ = driver.run(statement, environment, chance.uniform(0, usual_s))
        killed += status == -signal.SIGKILL
        check(status == 0)
        assert driver.run(statement, environment)[0] == 0
        check(True)
        assert _partial(site) == []
    assert killed >= rounds // 4, killed


def _partial(site: Path) -> list[str]:
    """Return what was left half-made: temporary files, folders to be renamed, unpacked bundles."""
    left = [str(path) for kind in ("*.partial", "*.incomplete", "*.tmp") for path in site.rglob(kind)]
    left += [str(path) for path in site.glob("hub/.locks/medvllm-import/*")]
    for folder in (site / "medvllm" / "converted", site / "medvllm" / "models"):
        left += [str(path) for path in folder.glob("*.*") if path.is_dir()]
    return left


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A function that takes the Hub from this process, or gives it back."""
    from huggingface_hub import constants

    return lambda is_offline: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)


@counted
def test_pull(
    driver: Driver, site: Path, hub: LoopbackHub, tmp_path: Path, rounds: int, offline: Callable[[bool], None]
) -> None:
    """What is in the cache afterwards is whole, or not taken for the model."""
    source = _bytes(tiny.bert_masked_lm(tmp_path / "acme", weights="sharded"))
    commit = hub.add("acme/bert", tmp_path / "acme")
    folder = site / "hub" / "models--acme--bert" / "snapshots" / commit

    def check(completed: bool) -> None:
        offline(True)
        try:
            found = ModelRegistry().pull("acme/bert")
        except MedVLLMError:
            assert not completed
        else:
            assert _bytes(found) == source and found == folder
        finally:
            offline(False)

    _rounds(driver, site, "registry.pull('acme/bert')", rounds, lambda: None, check)


@counted
def test_convert(driver: Driver, site: Path, tmp_path: Path, rounds: int) -> None:
    """A converted copy is not there, or has every tensor of the pickle."""
    state = {str(i): torch.randn(300, 500) for i in range(4)}
    folder = tiny.bert_masked_lm(tmp_path / "m", weights="bin")
    torch.save(state, folder / "pytorch_model.bin")
    converted = site / "medvllm" / "converted"

    def check(completed: bool) -> None:
        there = [path for path in converted.glob("*") if path.is_dir() and not path.suffix]
        assert len(there) == 1 or not completed
        for made in there:
            stored = load_file(made / "model.safetensors")
            assert stored.keys() == state.keys() and all(torch.equal(stored[name], state[name]) for name in state)

    _rounds(driver, site, f"registry.pull({str(folder)!r})", rounds, lambda: None, check)


def _timeless(lock: bytes) -> bytes:
    return re.sub(rb', at = "[^"]*"', b"", lock)


@counted
def test_lock(driver: Driver, site: Path, tmp_path: Path, rounds: int) -> None:
    """The file is the old one or the new one, to the byte but for the time of the approval."""
    one, two = (tiny.bert_masked_lm(tmp_path / name, seed=i) for i, name in enumerate(("one", "two")))
    file = site / "medvllm.lock"
    ModelRegistry().lock(one)
    old = file.read_bytes()
    ModelRegistry().lock(two)
    new = file.read_bytes()

    def check(completed: bool) -> None:
        found = (_timeless(content) for content in (file.read_bytes(), old, new))
        assert next(found) in tuple(found)[1 if completed else 0 :]
        assert not any(ModelRegistry().verify().values())

    _rounds(driver, site, f"registry.lock({str(two)!r})", rounds, lambda: file.write_bytes(old), check)


def _exported(hub: LoopbackHub, tmp_path: Path, registry: ModelRegistry) -> dict[str, dict[str, bytes]]:
    """Export a repository and a folder of the user's own; return the files of each."""
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
    registry.register("tagger", "clinical", model_path=tiny.bert_token_classifier(tmp_path / "t", ["O", "B-X"]))
    return {"acme/bert": _bytes(tmp_path / "acme"), "tagger": _bytes(tmp_path / "t")}


@counted
def test_import(
    driver: Driver, site: Path, hub: LoopbackHub, tmp_path: Path, rounds: int, offline: Callable[[bool], None]
) -> None:
    """Each model of the bundle is there, whole and with its entry, or is not there."""
    registry = ModelRegistry()
    sources = _exported(hub, tmp_path, registry)
    registry.export(tmp_path / "b.tar", "acme/bert", "tagger", unlocked=True)

    def check(completed: bool) -> None:
        offline(True)
        other = ModelRegistry()
        for name, files in sources.items():
            try:
                assert _bytes(other.pull(name)) == files
            except MedVLLMError:
                assert not completed
        for entry in other.catalog.versions("tagger").values():
            assert _bytes(Path(parse_name(entry.location).name)) == sources["tagger"]
        assert other.catalog.check_history()[2] == []
        locked = Lock.current().models
        assert locked.keys() == ({"acme/bert", "tagger@1"} if completed or locked else set())
        assert not any(other.verify().values())
        offline(False)

    statement = f"registry.import_bundle({str(tmp_path / 'b.tar')!r}, lock=True)"
    _rounds(driver, site, statement, rounds, lambda: None, check)


@counted
def test_export(driver: Driver, site: Path, hub: LoopbackHub, tmp_path: Path, rounds: int) -> None:
    """The bundle is not there, or has the bytes that it always has."""
    registry = ModelRegistry()
    _exported(hub, tmp_path, registry)
    registry.pull("acme/bert")
    expected = registry.export(tmp_path / "b.tar", "acme/bert", "tagger", unlocked=True).contents
    bundle = site / "b.tar"

    def check(completed: bool) -> None:
        if completed or bundle.exists():
            with open_bundle(bundle) as found:
                assert found.contents == expected

    statement = (
        f"registry.register('tagger', 'clinical', model_path={str(tmp_path / 't')!r}); "
        f"registry.export({str(bundle)!r}, 'acme/bert', 'tagger', unlocked=True, replace=True)"
    )
    kept: Any = shutil.copytree(site, tmp_path / "kept", symlinks=True)
    _rounds(
        driver,
        site,
        statement,
        rounds,
        lambda: shutil.copytree(kept, site, symlinks=True, dirs_exist_ok=True),
        check,
    )

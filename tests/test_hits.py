"""A hit costs little, and sees what has changed: at once what this process did, and the rest within `TRUST_S`."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from medvllm import settings
from medvllm.catalog import stores
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import MedVLLMError, RequestError
from medvllm.model_registry.known_calls import TRUST_S, key_of
from tests.support import tiny
from tests.support.work import least_work


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models."""
    root = tmp_path_factory.mktemp("folders")
    return tiny.bert_encoder(root / "one"), tiny.bert_masked_lm(root / "two")


@pytest.fixture
def folder(folders: tuple[Path, Path], registry: ModelRegistry, tmp_path: Path) -> Path:
    """The folder of the model that is registered as "m", in memory, and was hit just before."""
    own = tiny.copy(folders[0], tmp_path / "m")
    registry.register("m", "generic", model_path=str(own))
    for _ in range(3):
        registry.load_model("m")
    return own


def _lease(registry: ModelRegistry) -> None:
    with registry.lease("m"):
        pass


CALLS: dict[str, tuple[Callable[[ModelRegistry], object], int]] = {
    "hit": (lambda registry: registry.load_model("m"), 5),
    "dtype": (lambda registry: registry.load_model("m", dtype="float32"), 5),
    "keep_alive": (lambda registry: registry.load_model("m", keep_alive="10m"), 6),
    "lease": (_lease, 15),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_hit_does_little_work(registry: ModelRegistry, folder: Path, kind: str) -> None:
    """So many calls of Python functions, and no call of the system: neither is a matter of the machine's speed."""
    call, most = CALLS[kind]
    functions, of_system = least_work(partial(call, registry))
    assert functions <= most and of_system == []
    assert registry.statistics().loads == 1


def test_a_reload_looks_at_the_settings_files_once(
    registry: ModelRegistry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads ten settings; each would look at two files. A slow load looks again, which is put off here."""
    monkeypatch.setattr(settings, "_SHARED_S", 3600.0)
    names: list[str] = []
    registry.clear_cache()
    sys.setprofile(lambda frame, event, function: names.append(function.__name__) if event == "c_call" else None)
    try:
        registry.load_model("m")
    finally:
        sys.setprofile(None)
    assert names.count("lstat") == 2


def test_threads_count_every_hit(registry: ModelRegistry, folder: Path) -> None:
    """They take no lock for it. To ask for the counts changes none."""
    before = registry.statistics().hits

    def work(_: int) -> int:
        return sum(registry.load_model("m") is not None and registry.statistics().hits >= 0 for _ in range(500))

    with ThreadPoolExecutor(8) as pool:
        done = sum(pool.map(work, range(8)))
    assert registry.statistics().hits == before + done == registry.loaded_models()[0].hits


def test_a_lease_that_nobody_ends_is_returned(registry: ModelRegistry, folder: Path) -> None:
    """It ends with the object that began it, which begins one lease at a time."""
    leasing = registry.lease("m")
    with leasing, pytest.raises(RequestError, match="has begun already"), leasing:
        pass
    with leasing as again:
        assert again.model is registry.load_model("m")
    leasing.__enter__()
    assert registry.loaded_models()[0].leases == 1
    del leasing
    assert registry.loaded_models()[0].leases == 0


def _alter_weights(folder: Path) -> None:
    other = folder.with_name("new.safetensors")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    other.replace(folder / "model.safetensors")


def _touch_config(folder: Path) -> None:
    with (folder / "config.json").open("a") as stream:
        stream.write("\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights replaced": _alter_weights,
    "config written to": _touch_config,
    "file added": lambda folder: (folder / "added_tokens.json").write_text("{}"),
    "file removed": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "settings file": lambda folder: Path(os.environ["MEDVLLM_HOME"], "config.toml").write_text('dtype = "bfloat16"'),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_others_change_is_seen_in_time(registry: ModelRegistry, folder: Path, change: str) -> None:
    """The next call after TRUST_S gives another model."""
    before = registry.load_model("m")
    Path(os.environ["MEDVLLM_HOME"]).mkdir(exist_ok=True)
    CHANGES[change](folder)
    time.sleep(TRUST_S)
    after = registry.load_model("m")
    assert after is not before
    with registry.lease("m") as lease:
        assert lease.model is after


def test_a_lock_is_seen_in_time(
    registry: ModelRegistry, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that appears where it is looked for, and one in the directory that has become the working directory."""
    (home / "medvllm.lock").write_text("no lock")
    time.sleep(TRUST_S)
    with pytest.raises(MedVLLMError, match="medvllm.lock"):
        registry.load_model("m")
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    (home / "empty").mkdir()
    monkeypatch.chdir(home / "empty")
    for _ in range(3):
        registry.load_model("m")
    monkeypatch.chdir(home)
    time.sleep(TRUST_S)
    with pytest.raises(MedVLLMError, match="medvllm.lock"):
        registry.load_model("m")


def test_a_catalogue_that_others_change_is_seen_in_time(
    registry: ModelRegistry, folders: tuple[Path, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, its file is replaced, as by a backup."""
    file, other = home / "medvllm" / "catalog.db", home / "other.db"
    registry.register("stored", "generic", model_path=str(folders[0]), persist=True)
    stores.close_all()
    shutil.copy(file, other)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MEDVLLM_CATALOG", str(other))
        registry.register("stored", "generic", model_path=str(folders[1]), persist=True, replace=True)
        stores.close_all()
    for _ in range(3):
        assert type(registry.load_model("stored")).__name__ == "BertModel"
    other.replace(file)
    time.sleep(TRUST_S)
    assert type(registry.load_model("stored")).__name__ == "BertForMaskedLM"


def test_what_this_process_changes_is_seen_at_once(
    registry: ModelRegistry, folder: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of its own, a stored one, a variable of the environment, an eviction."""

    def kind(name: str, times: int) -> str:
        return {type(registry.load_model(name)).__name__ for _ in range(times)}.pop()

    assert kind("m", 2) == "BertModel"
    registry.register("m", "generic", model_path=str(folders[1]), replace=True)
    assert kind("m", 1) == "BertForMaskedLM"
    registry.register("stored", "generic", model_path=str(folders[0]), persist=True)
    assert kind("stored", 3) == "BertModel"
    registry.register("stored", "generic", model_path=str(folders[1]), persist=True, replace=True)
    assert kind("stored", 3) == "BertForMaskedLM"
    registry.catalog.set_alias("stored", "default", 1)
    assert kind("stored", 3) == "BertModel"
    monkeypatch.setenv("MEDVLLM_DTYPE", "bfloat16")
    assert str(registry.load_model("stored").dtype) == "torch.bfloat16"
    monkeypatch.setenv("MEDVLLM_ALLOW_UNREGISTERED", "off")
    assert kind("stored", 3) == "BertModel"
    registry.evict("stored")
    assert "stored" not in registry._model_cache
    loads = registry.statistics().loads
    assert kind("stored", 2) == "BertModel" and registry.statistics().loads == loads + 1


def test_threads_see_the_change(registry: ModelRegistry, folder: Path) -> None:
    """Eight that call all the time: from TRUST_S after the change on, none gets the old model."""
    old, done = registry.load_model("m"), time.monotonic() + 3600
    wrong: list[int] = []

    def work(number: int) -> None:
        while (begun := time.monotonic()) < end[0]:
            if registry.load_model("m") is old and begun > changed[0] + TRUST_S:
                wrong.append(number)

    changed, end = [done], [done]
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(work, number) for number in range(8)]
        time.sleep(0.05)
        _alter_weights(folder)
        changed[0] = time.monotonic()
        end[0] = changed[0] + 0.3
        for future in futures:
            future.result()
    assert wrong == [] and registry.load_model("m") is not old


def test_options_that_are_equal_in_python_stay_apart() -> None:
    """1 is equal to True and to 1.0, and means another thing. What is not hashable is a key as well."""
    keys = {key_of("m", {"output_attentions": value}) for value in (1, True, 1.0, "1", None)}
    assert len(keys) == 5
    assert key_of("m", {"config": {"a": [1]}}) == key_of("m", {"config": {"a": [1]}}) != key_of("m", {"config": {}})
    assert key_of(Path("m"), {}) is None

"""The registry within its budget: real models, measured bytes, plans, and what a process shares with others."""

import gc
import math
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import BudgetError, RequestError, SettingError
from medvllm.options import LoadOptions
from tests.support import children, tiny
from tests.support.trained import MINILM


@pytest.fixture
def models(registry: ModelRegistry, tmp_path: Path) -> list[str]:
    """Five models of the same size."""
    names = [f"m{i}" for i in range(5)]
    for i, name in enumerate(names):
        registry.register(name, "clinical", model_path=str(tiny.bert_encoder(tmp_path / name, seed=i)))
    return names


def _size(registry: ModelRegistry, name: str) -> int:
    with registry.lease(name) as lease:
        size: int = lease.size_bytes
    return size


def test_a_budget_in_bytes_is_kept(registry: ModelRegistry, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest idle leaves; what it was is loaded anew, equal."""
    size = _size(registry, "m0")
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={3 * size}")
    outputs: dict[str, torch.Tensor] = {}
    for name in models * 2:
        with registry.lease(name) as lease, torch.inference_mode():
            ids = lease.tokenizer("Patient denies fever", return_tensors="pt")
            output = lease.model(**ids).last_hidden_state
            assert torch.equal(outputs.setdefault(name, output), output)
        assert sum(r.size_bytes for r in registry.loaded_models()) <= 3 * size
    figures = registry.statistics()
    assert figures.hits + figures.misses == 11 and figures.misses == figures.loads >= 7
    assert figures.evictions == {"room": figures.loads - 3}
    assert figures.devices["cpu"].budget_bytes == 3 * size


def test_the_plan_says_what_then_happens(
    registry: ModelRegistry, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size from the headers first, measured afterwards; nothing is loaded or evicted by asking."""
    first = registry.plan("m0")
    assert (first.fit, first.known_by, first.load_s, first.leaving) == ("now", "headers", None, ())
    size = _size(registry, "m0")
    assert abs(first.size_bytes - size) < 2000  # position ids are no weights
    assert registry.plan("m0").fit == "loaded"
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={2 * size}")
    registry.evict("m0")
    again = registry.plan("m0")
    assert (again.known_by, again.size_bytes) == ("measured", size) and again.load_s
    registry.load_model("m1")
    registry.load_model("m2")
    plan = registry.plan("m3")
    (leaving,) = plan.leaving
    assert plan.fit == "after eviction" and leaving.size_bytes == size and "a reload takes" in leaving.why
    assert {r.name for r in registry.loaded_models()} == {"m1", "m2"}
    # Which of the two is the one to leave depends on the moment: idle for how long, over what a reload takes.
    assert leaving.name in ("m1", "m2")
    registry.load_model("m3")
    assert len(registry.loaded_models()) == 2 and "m3" in registry._model_cache
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", "cpu=1kB")
    assert registry.plan("m4").fit == "never"
    with pytest.raises(BudgetError, match=r"Not enough memory for model 'm4' on cpu: it needs 10\d KB") as caught:
        registry.load_model("m4")
    told, plan = caught.value.plan, registry.plan("m4")
    # For how long a model was idle is another number by now.
    assert replace(told, leaving=()) == replace(plan, leaving=())
    assert [model.name for model in told.leaving] == [model.name for model in plan.leaving]
    half = registry.plan("m4", dtype="bfloat16").size_bytes
    assert 2 * half == registry.plan("m4").size_bytes


def test_a_measured_weight_is_remembered_by_the_machine(registry: ModelRegistry, models: list[str]) -> None:
    """For each dtype its own; another registry knows it too."""
    size = _size(registry, "m0")
    other = ModelRegistry()
    entry = registry.get_metadata("m0")
    other.register("other", "clinical", model_path=entry.source.model_path)
    assert (other.plan("other").known_by, other.plan("other").size_bytes) == ("measured", size)
    assert other.plan("other", dtype="bfloat16").known_by == "headers"


def test_keep_alive_of_a_call_an_entry_and_the_installation(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The narrower one wins; a pinned model stays whatever comes."""
    folder = str(tiny.bert_encoder(tmp_path / "m"))
    registry.register("entry", "clinical", model_path=folder, keep_alive="10m")
    registry.register("plain", "clinical", model_path=folder)
    monkeypatch.setenv("MEDVLLM_KEEP_ALIVE", "90s")
    registry.load_model("entry")
    registry.load_model("plain")
    assert {r.name: r.keep_alive for r in registry.loaded_models()} == {"entry": 600, "plain": 90}
    registry.load_model("entry", keep_alive=-1)
    registry.load_model("plain")
    assert {r.name: r.keep_alive for r in registry.loaded_models()} == {"entry": math.inf, "plain": 90}
    with registry.lease("plain", keep_alive=0) as lease:
        assert lease.model is registry.load_model("plain")
    assert "plain" not in registry._model_cache
    with pytest.raises(RequestError, match="keep_alive='soon' is not a duration such as 10m.\nUse seconds"):
        registry.load_model("plain", keep_alive="soon")
    with pytest.raises(RequestError, match="keep_alive='soon' is not a duration"):
        registry.register("m", "clinical", keep_alive="soon")


def test_a_lease_that_is_over_gives_no_model(
    registry: ModelRegistry, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name in the caller's scope must not keep the memory from the next model."""
    with registry.lease("m0") as lease:
        receipt = lease.receipt
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={lease.size_bytes}")
    monkeypatch.setenv("MEDVLLM_MEMORY_TIMEOUT", "0.1")
    with registry.lease("m1"):
        assert [r.name for r in registry.loaded_models()] == ["m1"]
    assert lease.receipt is receipt and lease.metadata.name == "m0" and "ended" in repr(lease)
    with pytest.raises(RequestError, match="The lease of model 'm0' has ended"):
        _ = lease.model


def test_a_callers_own_copy_counts(registry: ModelRegistry, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as it is held."""
    own = registry.load_model("m0", use_cache=False)
    size = registry.loaded_models()[0].size_bytes
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={size}")
    monkeypatch.setenv("MEDVLLM_MEMORY_TIMEOUT", "0.1")
    with pytest.raises(BudgetError, match="in use, which callers hold"):
        registry.load_model("m1")
    assert own is not None
    del own
    assert registry.load_model("m1")


def test_mapped_bytes_are_told_from_private_ones(registry: ModelRegistry, tmp_path: Path) -> None:
    """A mapped model costs little until it is written to."""
    folder = tiny.bert_encoder(tmp_path / "m")
    model: Any = registry.load_model(folder)
    (loaded,) = registry.loaded_models()
    assert 0 < loaded.mapped_bytes <= loaded.size_bytes
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    (written,) = registry.loaded_models()
    assert written.mapped_bytes < loaded.mapped_bytes / 2
    gc.collect()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MEDVLLM_MEMORY_BUDGET", "8GB"),
        ("MEDVLLM_MEMORY_BUDGET", "gpu=1GB"),
        ("MEDVLLM_MAX_MODELS", "0"),
        ("MEDVLLM_KEEP_ALIVE", "soon"),
        ("MEDVLLM_MEMORY_TIMEOUT", "never"),
    ],
)
def test_wrong_settings_are_named(
    registry: ModelRegistry, models: list[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Before anything is loaded."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=f"Setting {name} is {value!r}"):
        registry.load_model("m0")


def test_a_count_of_models_beside_their_bytes(
    registry: ModelRegistry, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is reached first."""
    monkeypatch.setenv("MEDVLLM_MAX_MODELS", "2")
    for name in models:
        registry.load_model(name)
    assert len(registry._model_cache) == 2 and registry.statistics().evictions == {"count": 3}


def test_a_model_on_the_cpu_is_offloaded_to_its_file(registry: ModelRegistry, models: list[str]) -> None:
    """It is evicted, and the next call maps the file again. A leased model stays."""
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.inference_mode():
        before = registry.load_model("m0")(input_ids=ids).last_hidden_state
        assert registry.offload("m0") and registry.loaded_models() == [] and not registry.offload("m0")
        assert torch.equal(registry.load_model("m0")(input_ids=ids).last_hidden_state, before)
    assert registry.statistics().loaded_by == {"transformers": 1, "replay": 1}
    with registry.lease("m0"):
        assert not registry.offload("m0") and "m0" in registry._model_cache


def test_the_weights_of_an_offloaded_model_are_in_host_memory(
    registry: ModelRegistry, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a GPU: they count on the CPU, leave for other models, and come back unchanged."""
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.inference_mode():
        before = registry.load_model("m0", use_cache=False)(input_ids=ids).last_hidden_state
    target = registry.session.resolver.resolve("m0", LoadOptions())
    registry.session.load_offloaded(target)
    (offloaded,) = registry.loaded_models()
    assert (offloaded.device, offloaded.offloaded, offloaded.mapped_bytes, offloaded.name) == ("cpu", True, 0, "m0")
    assert registry.statistics().devices["cpu"].cached_bytes == offloaded.size_bytes
    with torch.inference_mode():
        assert torch.equal(registry.load_model("m0")(input_ids=ids).last_hidden_state, before)
    assert registry.statistics().loaded_by["offload"] == 1
    assert [loaded.offloaded for loaded in registry.loaded_models()] == [False]
    registry.session.load_offloaded(target)
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={offloaded.size_bytes}B")
    registry.load_model("m1")
    assert [loaded.name for loaded in registry.loaded_models()] == ["m1"]
    with pytest.raises(BudgetError), registry.lease("m1"):
        registry.session.load_offloaded(target)


_FAULTS = """
from resource import RUSAGE_SELF, getrusage
import torch
from medvllm import registry
torch.set_num_threads(1)
runner = registry.runner({folder!r})
for _ in range(2):
    before = getrusage(RUSAGE_SELF).ru_minflt
    runner.embed(["fever and cough " * 40] * 8)
print(getrusage(RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_a_batch_uses_the_memory_of_the_one_before() -> None:
    """Few new pages, which the system would have to clear; more than 9,000 if each layer got new ones."""
    assert int(children.out(_FAULTS.format(folder=str(MINILM)))) < 3000

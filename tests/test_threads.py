"""Right under threads: loads, forwards, tokenizers, and loads that others run beside ours."""

import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    PreTrainedModel,
    XGLMConfig,
    XGLMForCausalLM,
    initialization,
)
from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

from medvllm.engine.model_runner import ModelRegistry
from medvllm.loading import from_pretrained_lock
from tests.support import tiny

MAKERS: dict[str, Any] = {
    "tied-bert": tiny.bert_masked_lm,
    "encoder": tiny.bert_encoder,
    "tied-gpt2": tiny.gpt2_causal_lm,
    "untied-llama": tiny.llama_causal_lm,
    "roberta": tiny.roberta_masked_lm,
}
DTYPES = ("float32", "bfloat16", "float16")
IDS = torch.tensor([[2, 6, 7, 8, 9, 3]])


def _output(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result = model(input_ids=IDS)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state  # type: ignore[no-any-return]


def _fault(model: Any, dtype: str, tied: bool) -> str | None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            return f"{name} is on meta"
    wrong = [name for name, p in model.named_parameters() if p.dtype != getattr(torch, dtype)]
    if wrong:
        return f"{wrong[0]} is not {dtype}"
    if tied and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        return "the head is untied"
    return None


@pytest.mark.parametrize(
    "rounds", [10, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])], ids=str
)
def test_eight_threads_many_rounds(registry: ModelRegistry, tmp_path: Path, rounds: int) -> None:
    """Mixed models, dtypes, heads, loads and forwards: each model is as it is when loaded alone."""
    for name, make in MAKERS.items():
        registry.register(name, "generic", model_path=str(make(tmp_path / name)))
    pairs = [(name, dtype) for name in MAKERS for dtype in DTYPES]
    alone = {}
    for name, dtype in pairs:
        alone[name, dtype] = _output(registry.load_model(name, dtype=dtype))
    registry.clear_cache()
    faults: list[str] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(rounds):
            name, dtype = choose.choice(pairs)
            with registry.lease(name, dtype=dtype) as lease:
                fault = _fault(lease.model, dtype, tied=name in ("tied-bert", "tied-gpt2", "roberta"))
                if fault is None and not torch.equal(_output(lease.model), alone[name, dtype]):
                    fault = "the output differs"
            if fault:
                faults.append(f"{name} in {dtype}: {fault}")
            if choose.random() < 0.3:
                registry.evict(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert faults == []
    assert sum(loaded.leases for loaded in registry.loaded_models()) == 0
    assert torch.get_default_dtype() is torch.float32


def test_private_models_load_soundly_in_parallel(registry: ModelRegistry, tmp_path: Path) -> None:
    """use_cache=False takes the same lock."""
    folder = tiny.bert_masked_lm(tmp_path / "m")

    def load(dtype: str) -> str | None:
        return _fault(registry.load_model(folder, dtype=dtype, use_cache=False), dtype, tied=True)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(load, DTYPES * 8)) == {None}


def test_a_load_beside_ours_is_noticed_and_put_right(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`tie_weights` left swapped by unguarded loads that overlapped: our models are tied all the same."""
    genuine = PreTrainedModel.tie_weights
    first, second = initialization.no_tie_weights(), initialization.no_tie_weights()
    # The order that two overlapping loads produce: the second one restores the first one's empty function.
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    try:
        assert PreTrainedModel.tie_weights is not genuine
        model: Any = registry.load_model(tiny.bert_masked_lm(tmp_path / "m"))
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert PreTrainedModel.tie_weights is genuine
        assert "has been restored" in caplog.text
    finally:
        PreTrainedModel.tie_weights = genuine  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "threads", "pause_s"), [("float32", 4, 0.0), ("float16", 1, 0.2)])
def test_unguarded_loads_in_other_threads_do_not_spoil_ours(
    registry: ModelRegistry, tmp_path: Path, dtype: str, threads: int, pause_s: float
) -> None:
    """Others call from_pretrained by themselves meanwhile: ours are tied at once, and loaded again in a wrong dtype."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    stop = threading.Event()

    def unguarded() -> None:
        while not stop.wait(pause_s):
            try:
                BertForMaskedLM.from_pretrained(folder, dtype=getattr(torch, dtype))
            except Exception:  # what they do to each other is theirs
                continue

    others = [threading.Thread(target=unguarded) for _ in range(threads)]
    for thread in others:
        thread.start()
    try:
        found = [_fault(registry.load_model(folder, use_cache=False), "float32", tied=True) for _ in range(20)]
    finally:
        stop.set()
        for thread in others:
            thread.join()
        from_pretrained_lock.restore_tie_weights()
        torch.set_default_dtype(torch.float32)
    assert set(found) == {None}


def test_a_buffer_in_the_dtype_of_a_load_beside_ours_is_noticed(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sinusoidal positions take torch's default dtype, which another thread may change just before."""
    config = XGLMConfig(vocab_size=32, d_model=16, ffn_dim=16, num_layers=1, attention_heads=2)
    XGLMForCausalLM(config).save_pretrained(tmp_path / "m")
    compute: Callable[..., torch.Tensor] = XGLMSinusoidalPositionalEmbedding.get_embedding
    calls: list[None] = []

    def disturbed(*arguments: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) > 2:
            return compute(*arguments)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float16)
        try:
            return compute(*arguments)
        finally:
            torch.set_default_dtype(before)

    monkeypatch.setattr(XGLMSinusoidalPositionalEmbedding, "get_embedding", staticmethod(disturbed))
    model: Any = registry.load_model(tmp_path / "m", model_class=XGLMForCausalLM)
    assert len(calls) > 2
    assert model.model.embed_positions.weights.dtype is torch.float32


def _wrong_lengths(tokenizer: Any, rounds: int) -> int:
    """Return how many of the encodings by six threads, each with its own max_length, have a wrong length."""
    text = "the patient was given aspirin for fever and pain " * 10
    barrier = threading.Barrier(6)

    def encode(max_length: int) -> int:
        barrier.wait()
        encoded = (tokenizer(text, truncation=True, max_length=max_length)["input_ids"] for _ in range(rounds))
        return sum(len(ids) != max_length for ids in encoded)

    with ThreadPoolExecutor(6) as pool:
        return sum(pool.map(encode, (8, 16, 24, 32, 48, 64)))


@pytest.mark.slow
def test_a_registered_tokenizer_gives_right_lengths_to_every_thread(registry: ModelRegistry, tmp_path: Path) -> None:
    """A locked one is never wrong; the same files without the lock are, under a short switch interval."""

    folder = tiny.bert_masked_lm(tmp_path / "m")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert _wrong_lengths(registry.load_tokenizer(folder), 500) == 0
        unguarded = AutoTokenizer.from_pretrained(folder)
        assert sum(_wrong_lengths(unguarded, 500) for _ in range(3)) > 0
    finally:
        sys.setswitchinterval(interval)

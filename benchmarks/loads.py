"""`load_model` without a hit, beside the class's own `from_pretrained` on the same folder."""

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Series, Table, beside, duration, interleaved, timed
from medvllm.engine.model_runner import ModelRegistry

THREADS = 1  # of torch: two on two busy cores are slower than one
_NAME = "model"
_FIRST, _CACHED, _AGAIN = (
    "`load_model`, first after registering",
    "`load_model`, cached, one call",
    "`load_model`, after eviction",
)
_CLEAR = "`clear_cache`"


def tables(quick: bool) -> list[Table]:
    """Measure loads of a BERT-base and of a 1.1 B Llama from files that are in the page cache."""
    import torch
    from transformers import BertModel, LlamaForCausalLM
    from transformers.utils import logging

    from benchmarks import checkpoints

    torch.set_num_threads(THREADS)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # else the peer would draw one and ours would not
    write_bert = partial(checkpoints.bert, config=checkpoints.BERT_BASE)
    write_llama = partial(checkpoints.llama, config=checkpoints.LLAMA_1B)
    return [
        _table("BERT-base, 109 M parameters in float32", write_bert, BertModel, quick),
        _table("TinyLlama's shape, 1.1 B parameters in bfloat16", write_llama, LlamaForCausalLM, quick),
    ]


def _table(model: str, write: Callable[[Path], Path], cls: Any, quick: bool) -> Table:
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(Path(temporary) / _NAME)
        _read(folder)
        steps = _ours(folder)
        peer = f"`{cls.__name__}.from_pretrained(folder)`"
        steps[peer] = partial(_timed_clean, partial(cls.from_pretrained, folder))
        series = interleaved(steps, 3 if quick else 15)
    rows = beside(series, dict.fromkeys((_FIRST, _CACHED, _CLEAR, _AGAIN), peer))
    return Table(f"Loading {model}", rows, _reading(series, peer), duration)


def _read(folder: Path) -> None:
    """Bring the files into the page cache."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def _ours(folder: Path) -> dict[str, Callable[[], float]]:
    """Return the steps that load through the registry, each of which relies on the one before."""
    from benchmarks import checkpoints

    registry = ModelRegistry()
    load, own = partial(registry.load_model, _NAME), checkpoints.dtype_of(folder)

    def first() -> float:
        registry.register(_NAME, "custom", model_path=str(folder), parameters=own, replace=True)
        registry.clear_cache()
        return again()

    def again() -> float:
        if registry.loaded_models():
            raise RuntimeError("The model is still in memory, so this would not be a load.")
        return _timed_clean(load)

    return {_FIRST: first, _CACHED: partial(timed, load), _CLEAR: partial(timed, registry.clear_cache), _AGAIN: again}


def _timed_clean(load: Callable[[], object]) -> float:
    gc.collect()  # what the step before left behind is not this step's
    return timed(load)


def _reading(series: dict[str, Series], peer: str) -> str:
    more = series[_FIRST].median - series[peer].median
    return (
        f"A first load takes {duration(abs(more))} {'more' if more > 0 else 'less'} than the peer: it checks every "
        "weight. `clear_cache` runs Python's garbage collector only if a model lingers.\n"
        f"Both map the weights. torch runs {THREADS} thread; all is imported before."
    )

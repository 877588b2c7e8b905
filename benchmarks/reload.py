"""Loading again what was evicted, beside the class's own `from_pretrained`; and what processes share."""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Series, Table, beside, duration, figure, interleaved, timed
from medvllm.engine.model_runner import ModelRegistry

THREADS = 1  # of torch: two on two busy cores are slower than one
PROCESSES = (1, 2, 4, 8)
_NAME = "model"
_FIRST, _RELOAD, _REBUILD = "`load_model`, first", "`load_model`, after eviction", "— of it: rebuilding the model"


def tables(quick: bool) -> list[Table]:
    """Measure reloads of two BERTs and of a 1.1 B Llama from files that are in the page cache, then what is shared."""
    import torch
    from transformers import BertModel, LlamaForCausalLM
    from transformers.utils import logging

    from benchmarks import checkpoints

    torch.set_num_threads(THREADS)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # else the peer would draw one and ours would not
    base, large = (
        partial(checkpoints.bert, config=config) for config in (checkpoints.BERT_BASE, checkpoints.BERT_LARGE)
    )
    llama = partial(checkpoints.llama, config=checkpoints.LLAMA_1B)
    return [
        _reloads("BERT-base, 109 M parameters in float32", base, BertModel, quick),
        _reloads("BERT-large, 335 M parameters in float32", large, BertModel, quick),
        _reloads("TinyLlama's shape, 1.1 B parameters in bfloat16", llama, LlamaForCausalLM, quick),
        _shared("float32, as in the file", base, "float32", quick),
        _shared("bfloat16, converted once", base, "bfloat16", quick),
    ]


def _reloads(model: str, write: Callable[[Path], Path], cls: Any, quick: bool) -> Table:
    peer = f"`{cls.__name__}.from_pretrained(folder)`"
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["MEDVLLM_HOME"] = f"{temporary}/home"
        folder = write(Path(temporary) / _NAME)
        time.sleep(2.1)  # a digest is remembered once the file is older than a clock's grain
        steps = _ours(folder) | {peer: partial(_timed_clean, partial(cls.from_pretrained, folder))}
        series = interleaved(steps, 5 if quick else 15)
        del os.environ["MEDVLLM_HOME"]
    rows = beside(series, dict.fromkeys((_FIRST, _RELOAD, _REBUILD), peer))
    return Table(f"Reloading {model}", rows, _reading(series, peer), duration)


def _ours(folder: Path) -> dict[str, Callable[[], float]]:
    """Return the steps that load through the registry, each of which relies on the one before."""
    from benchmarks import checkpoints
    from medvllm.loading.replay import templates

    registry = ModelRegistry()
    load, own = partial(registry.load_model, _NAME), checkpoints.dtype_of(folder)

    def first() -> float:
        registry.register(_NAME, "custom", model_path=str(folder), parameters=own, replace=True)
        return again()

    def again() -> float:
        registry.clear_cache()
        return _timed_clean(load)

    def rebuild() -> float:
        *_, template = templates  # of the reload before
        return _timed_clean(template.rebuild)

    return {_FIRST: first, _RELOAD: again, _REBUILD: rebuild}


def _timed_clean(load: Callable[[], object]) -> float:
    gc.collect()  # what the step before left behind is not this step's
    return timed(load)


def _reading(series: dict[str, Series], peer: str) -> str:
    times = figure(series[peer].median / series[_RELOAD].median)
    alone = figure(series[peer].median / series[_REBUILD].median)
    return (
        f"A reload is {times} times as fast as the peer, of which rebuilding alone would be {alone} times as fast: the "
        "rest resolves the name and compares the files.\n"
        f"All map the weights. torch runs {THREADS} thread; all is imported before."
    )


def _shared(what: str, write: Callable[[Path], Path], dtype: str, quick: bool) -> Table:
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(Path(temporary) / _NAME)
        environment = os.environ | {"MEDVLLM_HOME": f"{temporary}/home"}
        _held("spawn", 1, folder, dtype, environment)  # converts, where there is something to convert
        series = {
            f"{number} process{'es' if number > 1 else ''}": Series(
                (_held("spawn", number, folder, dtype, environment),)
            )
            for number in PROCESSES[: 2 if quick else None]
        }
    one, *more = series
    rows = beside(series, dict.fromkeys(more, one))
    return Table(
        f"File-backed memory of processes that hold BERT-base in {what}",
        rows,
        "The PSS that loading and reading the whole model added, of all processes together.",
        lambda size: f"{size / 1e6:,.0f} MB",
    )


def _held(method: str, number: int, folder: Path, dtype: str, environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "benchmarks.sharing", method, str(number), str(folder), dtype]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(json.loads(run.stdout)["shared"])

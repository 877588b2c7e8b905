"""Fifty models through a budget for ten: our policy beside a bounded cache over `from_pretrained`, as peers have it."""

import os
import random
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from statistics import quantiles

from benchmarks.measure import Row, Series, Table, duration, figure, rate
from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry

_MODELS, _ROOM = 50, 10
_OURS = "`load_model`, a budget in bytes"
_LRU = "`functools.lru_cache(10)` over `from_pretrained`"
_COUNT = "count LRU that evicts first, as Ray Serve's multiplexing, over `from_pretrained`"


def tables(quick: bool) -> list[Table]:
    """Replay one Zipf trace against each, in turn."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    requests, rounds = (150, 2) if quick else (600, 5)
    trace = random.Random(7).choices(range(_MODELS), [1 / (rank + 1) for rank in range(_MODELS)], k=requests)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ[settings.HOME.name] = str(home / "home")
        try:
            return _measure(home, trace, rounds)
        finally:
            for setting in (settings.HOME, settings.MEMORY_BUDGET):
                os.environ.pop(setting.name, None)


def _measure(home: Path, trace: list[int], rounds: int) -> list[Table]:
    from benchmarks import checkpoints

    # One checkpoint under fifty names: the peers' files, too, are in the page cache all the time.
    folder = checkpoints.bert(home / "model", checkpoints.BERT_BASE)
    ours, size = _registry(folder)
    os.environ[settings.MEMORY_BUDGET.name] = f"cpu={_ROOM * size}B"
    ways: dict[str, Callable[[], Callable[[int], object]]] = {
        _OURS: lambda: _Ours(ours),
        _LRU: lambda: _cached(folder),
        _COUNT: lambda: _counted(folder),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    slowest: dict[str, list[float]] = {name: [] for name in ways}
    held: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, make in ways.items():
            request = make()
            times = []
            for model in trace:
                start = time.perf_counter()
                request(model)
                times.append(time.perf_counter() - start)
            if turn:  # the first round does not count
                rates[name].append(len(trace) / sum(times))
                slowest[name].append(quantiles(times, n=100)[98])
                held[name].append(float(_held(ours, size, name)))
            del request
            ours.clear_cache()
    figures = ours.statistics()
    return [
        _table(
            "requests a second", rates, rate, f"{figure(figures.loads / (rounds + 1))} of {len(trace)} requests load."
        ),
        _table("p99 of a request", slowest, duration, "The median of a request is a hit, for all three."),
        _table("bytes of models in memory afterwards", held, _megabytes, "Peers count models; ten of these fit."),
    ]


def _table(what: str, values: dict[str, list[float]], show: Callable[[float], str], reading: str) -> Table:
    series = {name: Series(tuple(own)) for name, own in values.items()}
    rows = tuple(Row(name, own, None if name == _COUNT else series[_COUNT]) for name, own in series.items())
    return Table(f"A Zipf trace of {_MODELS} BERT-base models through room for {_ROOM}: {what}", rows, reading, show)


def _registry(folder: Path) -> tuple[ModelRegistry, int]:
    """Return a registry with the model under all its names, and what one weighs; each has been loaded once."""
    registry = ModelRegistry()
    size = 0
    for number in range(_MODELS):
        registry.register(f"model-{number}", "custom", model_path=str(folder))
        with registry.lease(f"model-{number}") as lease:
            size = lease.size_bytes
        registry.clear_cache()
    return registry, size


class _Ours:
    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    def __call__(self, model: int) -> None:
        self._registry.load_model(f"model-{model}")


def _cached(folder: Path) -> Callable[[int], object]:
    return lru_cache(_ROOM)(lambda model: _from_pretrained(folder))


def _counted(folder: Path) -> Callable[[int], object]:
    models: OrderedDict[int, object] = OrderedDict()

    def request(model: int) -> object:
        if model not in models:
            if len(models) >= _ROOM:
                models.popitem(last=False)
            models[model] = _from_pretrained(folder)
        models.move_to_end(model)
        return models[model]

    return request


def _from_pretrained(folder: Path) -> object:
    from transformers import BertModel

    model: object = BertModel.from_pretrained(folder)
    return model


def _held(registry: ModelRegistry, size: int, name: str) -> int:
    return sum(model.size_bytes for model in registry.loaded_models()) if name == _OURS else _ROOM * size


def _megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"

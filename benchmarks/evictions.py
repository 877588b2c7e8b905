"""Fifty models through a budget for ten: our policy beside a bounded cache over `from_pretrained`, as peers have it."""

import os
import random
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from statistics import median, quantiles
from typing import Protocol

from benchmarks.measure import Row, Series, Table, duration, figure, rate, timed
from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry

_MODELS, _ROOM = 50, 10
_TITLE = f"A Zipf trace of {_MODELS} BERT-base models through room for {_ROOM}"
_OURS = "`load_model`, a budget in bytes"
_LRU = "`functools.lru_cache(10)` over `from_pretrained`"
_COUNT = "count LRU that evicts first, as Ray Serve's multiplexing, over `from_pretrained`"


def tables(quick: bool) -> list[Table]:
    """Replay one Zipf trace against each, in turn."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    requests, rounds = (150, 1) if quick else (600, 3)
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
    ours, size, firsts = _registry(folder)
    os.environ[settings.MEMORY_BUDGET.name] = f"cpu={_ROOM * size}B"
    ways: dict[str, Callable[[], _Requests]] = {
        _OURS: lambda: _Ours(ours),
        _LRU: lambda: _Cached(folder),
        _COUNT: lambda: _Counted(folder),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    slowest: dict[str, list[float]] = {name: [] for name in ways}
    loads: dict[str, list[float]] = {name: [] for name in ways}
    held: dict[str, list[float]] = {name: [] for name in ways}
    number = 0
    for turn in range(rounds + 1):
        for name, make in ways.items():
            request = make()
            times, of_loads = [], []
            for model in trace:
                before = request.loads
                times.append(timed(partial(request, model)))
                if request.loads > before:
                    of_loads.append(times[-1])
            if turn:  # the first round does not count
                rates[name].append(len(trace) / sum(times))
                slowest[name].append(quantiles(times, n=100)[98])
                loads[name].append(median(of_loads))
                held[name].append(float(_held(ours, size, name)))
            number = len(of_loads) if name == _OURS else number
            del request
            ours.clear_cache()
    times_a_reload = figure(median(slowest[_OURS]) / median(loads[_OURS]))
    return [
        _table("requests a second", rates, rate, f"Each model has been loaded once before. {number} requests load."),
        _table(
            "p99 of a request",
            slowest,
            duration,
            f"Ours is {times_a_reload} times its median load. The median of a request is a hit, for all three.",
        ),
        _table("the median of a request that loads", loads, duration, "Ours are reloads; a peer always begins anew."),
        _first_loads(firsts, loads[_COUNT]),
        _table("bytes of models in memory afterwards", held, _megabytes, "Peers count models; ten of these fit."),
    ]


def _table(what: str, values: dict[str, list[float]], show: Callable[[float], str], reading: str) -> Table:
    series = {name: Series(tuple(own)) for name, own in values.items()}
    rows = tuple(Row(name, own, None if name == _COUNT else series[_COUNT]) for name, own in series.items())
    return Table(f"{_TITLE}: {what}", rows, reading, show)


def _first_loads(firsts: list[float], peers: list[float]) -> Table:
    peer = Series(tuple(peers))
    rows = (
        Row("`load_model`, the first of each model, median", Series((median(firsts),)), peer),
        Row("`load_model`, the first of each model, p99", Series((quantiles(firsts, n=100)[98],)), peer),
        Row("`from_pretrained`, the median of a request that loads", peer, None),
    )
    return Table(
        f"{_TITLE}: the first load of each", rows, "The very first one, which hashes the file, is left out.", duration
    )


def _registry(folder: Path) -> tuple[ModelRegistry, int, list[float]]:
    """Return a registry with the model under all its names, what one weighs, and the seconds of each first load."""
    registry = ModelRegistry()
    size = 0
    times = []
    for number in range(_MODELS):
        name = f"model-{number}"
        registry.register(name, "custom", model_path=str(folder))
        times.append(timed(partial(registry.load_model, name)))
        with registry.lease(name) as lease:
            size = lease.size_bytes
        registry.clear_cache()
    return registry, size, times[1:]


class _Requests(Protocol):
    """What answers the requests of a trace."""

    @property
    def loads(self) -> int:
        """How many models were loaded so far."""

    def __call__(self, model: int) -> None:
        """Answer a request."""


class _Ours:
    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    @property
    def loads(self) -> int:
        return self._registry.statistics().loads

    def __call__(self, model: int) -> None:
        self._registry.load_model(f"model-{model}")


class _Cached:
    def __init__(self, folder: Path) -> None:
        self._load = lru_cache(_ROOM)(lambda model: _from_pretrained(folder))

    @property
    def loads(self) -> int:
        return self._load.cache_info().misses

    def __call__(self, model: int) -> None:
        self._load(model)


class _Counted:
    def __init__(self, folder: Path) -> None:
        self.loads = 0
        self._folder = folder
        self._models: OrderedDict[int, object] = OrderedDict()

    def __call__(self, model: int) -> None:
        if model not in self._models:
            if len(self._models) >= _ROOM:
                self._models.popitem(last=False)
            self._models[model] = _from_pretrained(self._folder)
            self.loads += 1
        self._models.move_to_end(model)


def _from_pretrained(folder: Path) -> object:
    from transformers import BertModel

    model: object = BertModel.from_pretrained(folder)
    return model


def _held(registry: ModelRegistry, size: int, name: str) -> int:
    return sum(model.size_bytes for model in registry.loaded_models()) if name == _OURS else _ROOM * size


def _megabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"

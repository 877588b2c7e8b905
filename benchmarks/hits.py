"""A model that is in memory: `load_model` in 1 and 8 threads, beside a dict, and a dict behind a lock."""

import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks.measure import Row, Series, Table, beside, duration, figure, interleaved, rate, timed
from medvllm.engine.model_runner import ModelRegistry

T = TypeVar("T")
Call = Callable[[], object]
_NAME = "tiny-bert"
_CALLS = 100_000  # fewer would end before the threads have taken turns often enough
_DICT, _LOCKED = "dict look-up", "lock + dict look-up"
_HIT, _DTYPE = "`load_model(name)`", '`load_model(name, dtype="float32")`'


def tables(quick: bool) -> list[Table]:
    """Measure hits: calls a second over all threads, and the median time of one call."""
    from benchmarks import checkpoints

    runs = 1 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        registry = ModelRegistry()
        registry.register(_NAME, "custom", model_path=str(checkpoints.bert(Path(folder) / _NAME, checkpoints.TINY)))
        targets = _targets(registry)
        rates = _measured(_calls_per_second, targets, _CALLS, runs)
        times = _measured(_p50, targets, _CALLS // 5, runs)
    return [
        Table("Cache hits: calls a second, all threads together", _rows(rates), _rates_read(rates), rate),
        Table("Cache hits: one call, p50", _rows(times), _times_read(times), duration),
    ]


def _targets(registry: ModelRegistry) -> dict[str, Call]:
    models = {_NAME: registry.load_model(_NAME)}
    lock = threading.Lock()

    def locked() -> object:
        with lock:
            return models[_NAME]

    return {
        _DICT: partial(models.__getitem__, _NAME),
        _LOCKED: locked,
        _HIT: partial(registry.load_model, _NAME),
        _DTYPE: partial(registry.load_model, _NAME, dtype="float32"),
    }


def _measured(
    measure: Callable[[Call, int, int], float], targets: dict[str, Call], calls: int, runs: int
) -> dict[str, Series]:
    steps = {
        _row(what, threads): partial(measure, call, threads, calls // threads)
        for threads in (1, 8)
        for what, call in targets.items()
    }
    return interleaved(steps, runs)


def _row(what: str, threads: int) -> str:
    return f"{what}, {threads} {'thread' if threads == 1 else 'threads'}"


def _rows(series: dict[str, Series]) -> tuple[Row, ...]:
    peers = {_row(what, threads): _row(_DICT, threads) for threads in (1, 8) for what in (_LOCKED, _HIT, _DTYPE)}
    return beside(series, peers)


def _calls_per_second(call: Call, threads: int, calls: int) -> float:
    def loop() -> tuple[float, float]:
        start = time.perf_counter()
        for _ in repeat(None, calls):
            call()
        return start, time.perf_counter()

    spans = _together(loop, threads)
    return threads * calls / (max(end for _, end in spans) - min(start for start, _ in spans))


def _p50(call: Call, threads: int, calls: int) -> float:
    def loop() -> list[float]:
        return [timed(call) for _ in range(calls)]

    return median(chain.from_iterable(_together(loop, threads)))


def _together(work: Callable[[], T], threads: int) -> list[T]:
    """Return what each thread's `work` returns; they start at the same moment."""
    barrier = threading.Barrier(threads)

    def wait_and_work() -> T:
        barrier.wait()
        return work()

    with ThreadPoolExecutor(threads) as pool:
        return [future.result() for future in [pool.submit(wait_and_work) for _ in range(threads)]]


def _rates_read(series: dict[str, Series]) -> str:
    one, eight = (series[_row(_HIT, threads)].median for threads in (1, 8))
    stated, locked = series[_row(_DTYPE, 1)].median, series[_row(_LOCKED, 1)].median
    return (
        f"A hit takes {duration(1 / one)}, {figure(locked / one)} times lock + dict; stating a dtype makes it "
        f"{duration(1 / stated)}.\n"
        f"Eight threads together reach {figure(eight / one)} of the rate of one; what is missing goes to taking turns."
    )


def _times_read(series: dict[str, Series]) -> str:
    one, eight = (series[_row(_HIT, threads)].median for threads in (1, 8))
    return (
        "The timer's own cost is in every row, so the dict's row is mostly timer, and the ratios are kinder than "
        "those above.\n"
        f"Half of all hits take at most {duration(one)} with one thread, {duration(eight)} with eight."
    )

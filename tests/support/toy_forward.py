"""A forward without a model: its numbers are known, and a test decides when its batches end."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medvllm.engine.model_runner.inference.call import Call
from medvllm.engine.model_runner.inference.forward import Layout
from medvllm.engine.model_runner.inference.part import Part
from medvllm.engine.model_runner.inference.queue import Queue
from medvllm.engine.model_runner.inference.slots import count_slots
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.engine.model_runner.request import current_limits
from tests.support.waiting import wait_until

SECONDS = 30  # after which a test gives up


@dataclass
class ToyForward:
    """Doubles each token id. Two of one model and device are equal.

    Attributes:
        batches: The ids of each window of each batch so far.
        on_run: What happens in each batch, before it is computed.
    """

    model: str = "toy"
    device: str = "cpu"
    budget: int = 8
    layout: Layout = "packed"
    part: Part = "tokens"
    batches: list[list[list[int]]] = field(default_factory=list, compare=False)
    on_run: Callable[[list[list[int]]], object] = field(default=lambda ids: None, compare=False)

    def run(self, batch: Sequence[Window]) -> list[Any]:
        """Return the doubled ids of each window."""
        ids = [window.input_ids for window in batch]
        self.batches.append(ids)
        self.on_run(ids)
        return [np.array([row], dtype=np.float32).T * 2 for row in ids]

    def __hash__(self) -> int:
        return hash(self.model)


def windows(*rows: Sequence[int]) -> list[Window]:
    """Return windows with these ids, each of a text of its own."""
    return [Window(text, list(row), [1] * len(row)) for text, row in enumerate(rows)]


def compute(queue: Queue, forward: ToyForward, *rows: Sequence[int]) -> list[list[float]]:
    """Return what a forward computes for windows, in their order."""
    given = windows(*rows)
    found: dict[int, list[float]] = {}
    for window, numbers in queue.run(Call(forward, given, current_limits())):
        assert window.text not in found
        found[window.text] = numbers[:, 0].tolist()
    return [found[window.text] for window in given]


class Gate:
    """Holds batches until the test lets them go, one by one. Pass `wait` as `on_run`."""

    def __init__(self) -> None:
        self._entered, self._go = threading.Semaphore(0), threading.Semaphore(0)

    def wait(self, ids: object = None) -> None:
        """Wait in a batch until the test lets it go."""
        self._entered.release()
        assert self._go.acquire(timeout=SECONDS)

    def wait_for_batch(self) -> None:
        """Wait in the test until a batch has begun."""
        assert self._entered.acquire(timeout=SECONDS)

    def open(self, batches: int = 1) -> None:
        """Let batches go."""
        self._go.release(batches)


class Callers:
    """Threads that compute, each started once the one before it waits in the queue."""

    def __init__(self, queue: Queue) -> None:
        self.results: dict[str, Any] = {}
        self._queue, self._threads = queue, list[threading.Thread]()

    def start(self, name: str, call: Callable[[], Any], *, waits: bool = True) -> None:
        """Start a thread. Its result, or its error, will be in `results`."""
        before = self._queue.statistics().waiting_calls

        def work() -> None:
            try:
                self.results[name] = call()
            except BaseException as error:
                self.results[name] = error

        thread = threading.Thread(target=work)
        self._threads.append(thread)
        thread.start()
        if waits:
            wait_until(lambda: name in self.results or self._queue.statistics().waiting_calls > before)

    def join(self) -> dict[str, Any]:
        """Wait for all threads, and return the results by name."""
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        return self.results


@contextmanager
def held(queue: Queue, device: str = "cpu") -> Iterator[None]:
    """Hold every place on a device, so that what threads ask for meanwhile gathers in the queue."""
    gate, callers = Gate(), Callers(queue)
    places = count_slots(device)
    for place in range(places):
        callers.start(str(place), lambda: compute(queue, ToyForward("held", on_run=gate.wait), [0]), waits=False)
        gate.wait_for_batch()
    try:
        yield
    finally:
        gate.open(places)
        callers.join()

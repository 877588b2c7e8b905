"""The queue: who runs, in which order, what shares a batch, and who is to blame."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from linecache import getline
from types import FrameType
from typing import Any

import pytest

from medvllm.engine.model_runner.inference.call import Call
from medvllm.engine.model_runner.inference.queue import Queue
from medvllm.engine.model_runner.inference.rotation import AGE_S
from medvllm.engine.model_runner.request import Request, current_limits
from medvllm.errors import (
    DeadlineError,
    DeviceMemoryError,
    LoadError,
    OverloadedError,
    RequestCancelledError,
    RequestError,
)
from tests.support.toy_forward import SECONDS, Callers, Gate, ToyForward, compute, windows
from tests.support.waiting import wait_until

LONG = [0] * 8  # a window that fills a batch


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The clock of the queue."""
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> Queue:
    """A queue in which one batch runs at once on each device."""
    return Queue(lambda device: 1, clock)


@pytest.fixture
def gate() -> Gate:
    """What holds batches."""
    return Gate()


@pytest.fixture
def callers(queue: Queue) -> Callers:
    """Threads that wait in the queue."""
    return Callers(queue)


def test_a_caller_that_is_alone_runs_its_own_batches(queue: Queue) -> None:
    """In its own thread, as full as the budget permits, and nothing is left behind."""
    threads: set[int] = set()
    forward = ToyForward(on_run=lambda ids: threads.add(threading.get_ident()))
    rows = [[1, 2, 3], [4, 5, 6], [7, 8], [9]]
    assert compute(queue, forward, *rows) == [[2, 4, 6], [8, 10, 12], [14, 16], [18]]
    assert forward.batches == [rows[:3], rows[3:]] and threads == {threading.get_ident()}
    statistics = queue.statistics()
    assert (statistics.batches, statistics.shared_batches, statistics.windows, statistics.tokens) == (2, 0, 4, 9)
    assert (statistics.waiting_calls, statistics.queued_tokens, statistics.running) == (0, 0, 0)
    assert compute(queue, forward) == []


@pytest.mark.parametrize("layout", ["packed", "padded", "equal", "single"])
def test_what_may_run_together_is_as_the_forward_says(queue: Queue, gate: Gate, callers: Callers, layout: Any) -> None:
    """A batch gathers while another one runs, from windows of several callers."""
    forward = ToyForward(layout=layout, on_run=gate.wait)
    callers.start("first", lambda: compute(queue, forward, LONG), waits=False)
    gate.wait_for_batch()
    for name in range(1, 5):
        callers.start(str(name), partial(compute, queue, forward, [name] * (2 - name % 2)))
    gate.open(5)
    results = callers.join()
    expected = {
        "packed": [[[1], [2, 2], [3], [4, 4]]],
        "padded": [[[1], [3]], [[2, 2], [4, 4]]],
        "equal": [[[1], [3]], [[2, 2], [4, 4]]],
        "single": [[[1]], [[2, 2]], [[3]], [[4, 4]]],
    }[layout]
    assert forward.batches[1:] == expected
    assert [results[str(name)] for name in range(1, 5)] == [[[2]], [[4, 4]], [[6]], [[8, 8]]]


@pytest.mark.parametrize(("lengths", "batches"), [((8, 7, 6), 1), ((8, 2), 2), ((8, 8, 8, 8, 8), 2)])
def test_a_padded_block_has_little_padding(queue: Queue, lengths: tuple[int, ...], batches: int) -> None:
    """Padding costs as much as text: what is much shorter runs in a block of its own."""
    forward = ToyForward(layout="padded", budget=32)
    assert len(compute(queue, forward, *([1] * length for length in lengths))) == len(lengths)
    assert len(forward.batches) == batches


def test_only_equal_forwards_share_a_batch(queue: Queue, gate: Gate, callers: Callers) -> None:
    """The oldest one comes first, and takes with it what came later for the same model."""
    batches: list[tuple[str, int]] = []

    def forward(name: str) -> ToyForward:
        def run(ids: list[list[int]]) -> None:
            batches.append((name, len(ids)))
            gate.wait()

        return ToyForward(name, on_run=run)

    callers.start("0", lambda: compute(queue, forward("a"), LONG), waits=False)
    gate.wait_for_batch()
    for number, name in enumerate("bababc", 1):
        callers.start(str(number), partial(compute, queue, forward(name), [1]))
    uses = queue.statistics().forwards
    assert {name: (use.waiting_calls, use.queued_tokens, use.running) for name, use in uses.items()} == {
        "a tokens": (2, 2, 1),
        "b tokens": (3, 3, 0),
        "c tokens": (1, 1, 0),
    }
    gate.open(4)
    callers.join()
    assert batches == [("a", 1), ("b", 3), ("a", 2), ("c", 1)]


def test_devices_do_not_wait_for_each_other(queue: Queue, gate: Gate, callers: Callers) -> None:
    """The CPU may run a batch while a GPU runs one."""
    callers.start("cpu", lambda: compute(queue, ToyForward(on_run=gate.wait), [1]), waits=False)
    gate.wait_for_batch()
    assert compute(queue, ToyForward(device="cuda:0"), [2]) == [[4]]
    gate.open()
    assert callers.join() == {"cpu": [[2]]}


def test_as_many_batches_run_at_once_as_the_device_bears(gate: Gate) -> None:
    """Also of one model."""
    queue = Queue(lambda device: 2)
    callers = Callers(queue)
    forward = ToyForward(on_run=gate.wait)
    for name in "ab":
        callers.start(name, lambda: compute(queue, forward, LONG), waits=False)
        gate.wait_for_batch()
    callers.start("c", lambda: compute(queue, forward, LONG))
    callers.start("d", lambda: compute(queue, forward, LONG))
    assert queue.statistics().running == 2
    gate.open(2)
    gate.wait_for_batch()
    gate.wait_for_batch()
    gate.open(2)
    assert len(callers.join()) == 4


def test_a_huge_note_holds_nobody_up(queue: Queue, gate: Gate, callers: Callers) -> None:
    """Each of 32 other callers is answered in the first batch that has room for it, not after the note."""
    forward = ToyForward(budget=8, on_run=gate.wait)
    callers.start("huge", lambda: compute(queue, forward, *[[0]] * 1000), waits=False)
    gate.wait_for_batch()
    for number in range(1, 33):
        callers.start(str(number), partial(compute, queue, forward, [number]))
    gate.open(2000)
    callers.join()
    served = [number for batch in forward.batches for [number] in batch if number]
    assert served == list(range(1, 33))
    needed = next(count for count, batch in enumerate(forward.batches) if [32] in batch)
    assert needed <= 6  # 32 windows, and one of the note in each batch of 8


def test_two_huge_notes_share_a_batch(queue: Queue, gate: Gate, callers: Callers) -> None:
    """Window by window."""
    forward = ToyForward(budget=8, on_run=gate.wait)
    callers.start("first", lambda: compute(queue, forward, LONG), waits=False)
    gate.wait_for_batch()
    callers.start("a", lambda: compute(queue, forward, *[[1]] * 8))
    callers.start("b", lambda: compute(queue, forward, *[[2]] * 8))
    gate.open(10)
    callers.join()
    assert forward.batches[1] == [[1], [2]] * 4


def _bulk(work: Any) -> Any:
    def in_bulk() -> Any:
        with Request(priority="bulk"):
            return work()

    return in_bulk


def test_four_interactive_turns_for_each_turn_in_bulk(queue: Queue, gate: Gate, callers: Callers) -> None:
    """And bulk work fills batches that have room left."""
    forward = ToyForward(budget=2, on_run=gate.wait)
    callers.start("first", lambda: compute(queue, forward, [0, 0]), waits=False)
    gate.wait_for_batch()
    for number in range(10):
        callers.start(f"bulk {number}", _bulk(lambda: compute(queue, forward, [9, 9])))
    for number in range(9):
        callers.start(f"interactive {number}", lambda: compute(queue, forward, [1, 1]))
    callers.start("small", lambda: compute(queue, forward, [3]))
    callers.start("small in bulk", _bulk(lambda: compute(queue, forward, [4])))
    gate.open(30)
    callers.join()
    kinds = [[row[0] for row in batch] for batch in forward.batches[1:]]
    assert kinds == [[1]] * 4 + [[9]] + [[1]] * 4 + [[9]] + [[1], [3, 4]] + [[9]] * 8


def test_bulk_work_that_has_waited_long_counts_as_interactive(
    queue: Queue, gate: Gate, callers: Callers, clock: Clock
) -> None:
    """The older one comes first then."""
    forward = ToyForward(budget=2, on_run=gate.wait)
    callers.start("first", lambda: compute(queue, forward, [0, 0]), waits=False)
    gate.wait_for_batch()
    for number in range(2):
        callers.start(f"bulk {number}", _bulk(lambda: compute(queue, forward, [9, 9])))
    clock.now += AGE_S
    for number in range(2):
        callers.start(f"interactive {number}", lambda: compute(queue, forward, [1, 1]))
    gate.open(5)
    callers.join()
    assert [batch[0][0] for batch in forward.batches[1:]] == [9, 9, 1, 1]


def test_a_deadline_ends_a_call_that_waits(queue: Queue, gate: Gate, callers: Callers) -> None:
    """Its windows never run, and what the others get is the same."""
    forward = ToyForward(on_run=gate.wait)
    callers.start("first", lambda: compute(queue, forward, LONG), waits=False)
    gate.wait_for_batch()
    with pytest.raises(DeadlineError, match=r"within 0\.01 s") as error, Request(timeout_s=0.01):
        compute(queue, forward, [13])
    assert error.value.timeout_s == 0.01 and isinstance(error.value, TimeoutError)
    assert queue.statistics().queued_windows == 0
    callers.start("second", lambda: compute(queue, forward, [1]))
    gate.open(2)
    assert callers.join()["second"] == [[2]]
    assert [[13]] not in forward.batches and not any([13] in batch for batch in forward.batches)


def test_a_deadline_that_passes_between_batches_ends_the_call(queue: Queue) -> None:
    """A batch that runs is completed, and no other one begins. A call that is complete is answered."""
    forward = ToyForward(on_run=lambda ids: time_out.wait(0.05))
    time_out = threading.Event()
    with Request(timeout_s=0.02), pytest.raises(DeadlineError):
        compute(queue, forward, LONG, LONG)
    assert len(forward.batches) == 1
    with Request(timeout_s=0.02):
        assert len(compute(queue, forward, [1])) == 1
    with Request(timeout_s=0.01) as request:
        time_out.wait(0.02)
        with pytest.raises(DeadlineError):
            compute(queue, forward, [1])
    assert len(forward.batches) == 2 and request.timeout_s == 0.01


def test_a_request_can_be_cancelled_from_another_thread(queue: Queue, gate: Gate, callers: Callers) -> None:
    """Its calls end at once, whether their windows wait or run in another caller's batch."""
    forward = ToyForward(on_run=gate.wait)
    request = Request()

    def cancelled() -> Any:
        with request:
            return compute(queue, forward, [13])

    callers.start("first", lambda: compute(queue, forward, LONG), waits=False)
    gate.wait_for_batch()
    callers.start("leader", lambda: compute(queue, forward, [1]))
    callers.start("runs", cancelled)
    gate.open()
    gate.wait_for_batch()  # of the leader, with the window of the other
    callers.start("waits", cancelled)
    request.cancel()
    wait_until(lambda: {"runs", "waits"} <= callers.results.keys())
    gate.open()
    results = callers.join()
    assert isinstance(results["runs"], RequestCancelledError) and isinstance(results["waits"], RequestCancelledError)
    assert results["leader"] == [[2]]
    assert [len(batch) for batch in forward.batches] == [1, 2]
    with request, pytest.raises(RequestCancelledError):
        compute(queue, forward, [1])


def test_a_cancelled_leader_makes_room_for_the_next_one(queue: Queue, gate: Gate, callers: Callers) -> None:
    """Whoever waits behind it runs."""
    request = Request()
    forward = ToyForward(on_run=gate.wait)

    def cancelled() -> Any:
        with request:
            return compute(queue, forward, LONG, LONG)

    callers.start("cancelled", cancelled, waits=False)
    gate.wait_for_batch()
    callers.start("next", lambda: compute(queue, forward, LONG))
    request.cancel()
    gate.open(2)
    results = callers.join()
    assert isinstance(results["cancelled"], RequestCancelledError) and results["next"] == [[0.0] * 8]
    assert len(forward.batches) == 2


def test_a_request_within_another_ends_with_either(queue: Queue) -> None:
    """The inner one has the priority, and leaves the outer one as it was."""
    forward = ToyForward()
    with Request(priority="bulk") as outer:
        with Request(timeout_s=60, priority="interactive"):
            outer.cancel()
            with pytest.raises(RequestCancelledError):
                compute(queue, forward, [1])
        with pytest.raises(RequestCancelledError):
            compute(queue, forward, [1])
    assert compute(queue, forward, [1]) == [[2]]
    with Request() as outer:
        with Request() as inner:
            inner.cancel()
        assert compute(queue, forward, [1]) == [[2]]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), 10**400, "5", True, [1]])
def test_a_timeout_that_is_none_is_refused(wrong: Any) -> None:
    """Each by the same error."""
    with pytest.raises(RequestError, match="timeout_s must be a number of seconds above 0"):
        Request(timeout_s=wrong)


def test_a_priority_that_is_none_is_refused() -> None:
    """With the one that was meant."""
    with pytest.raises(RequestError, match="Did you mean: 'bulk'"):
        Request(priority="bulks")  # type: ignore[arg-type]


def _refuse(*wrong: int) -> Any:
    def run(ids: list[list[int]]) -> None:
        found = [row[0] for row in ids if row[0] in wrong]
        if found:
            raise LoadError(f"cannot run {found[0]} among {len(ids)}", position=found[0])

    return run


def test_only_the_guilty_window_fails(queue: Queue, gate: Gate, callers: Callers) -> None:
    """The batch runs once more, window by window, and every other caller is answered."""

    def run(ids: list[list[int]]) -> None:
        if ids == [LONG]:
            gate.wait()
        _refuse(13)(ids)

    forward = ToyForward(on_run=run)
    callers.start("first", lambda: compute(queue, forward, LONG), waits=False)
    gate.wait_for_batch()
    for name, rows in {"a": [[1], [2]], "guilty": [[13], [3], [4]], "b": [[5]]}.items():
        callers.start(name, partial(compute, queue, forward, *rows))
    gate.open()
    results = callers.join()
    assert (results["a"], results["b"]) == ([[2], [4]], [[10]])
    assert str(results["guilty"]) == "cannot run 13 among 1" and results["guilty"].position == 13
    assert results["guilty"].__cause__ is None and results["guilty"].__context__ is None
    assert [batch for batch in forward.batches if [13] in batch] == [[[1], [13], [5], [2], [3], [4]], [[13]]]
    assert [[3]] not in forward.batches and [[4]] not in forward.batches  # the call has failed already
    assert queue.statistics().running == queue.statistics().waiting_calls == 0


def test_a_batch_that_needs_too_much_memory_is_halved(queue: Queue) -> None:
    """Once; a half that needs too much as well runs window by window, and one that is too large by itself fails."""

    def run(ids: list[list[int]]) -> None:
        if sum(row[0] for row in ids) > 5:
            raise DeviceMemoryError("no memory")

    forward = ToyForward(on_run=run)
    assert compute(queue, forward, [1], [1], [3], [1], [1], [1]) == [[2], [2], [6], [2], [2], [2]]
    assert [len(batch) for batch in forward.batches] == [6, 3, 3]
    forward.batches.clear()
    assert compute(queue, forward, [2], [5], [1], [1]) == [[4], [10], [2], [2]]
    assert [len(batch) for batch in forward.batches] == [4, 2, 1, 1, 2]
    with pytest.raises(DeviceMemoryError):
        compute(queue, forward, [1], [6], [1])


def test_an_engine_that_returns_too_few_numbers_is_found_out(queue: Queue) -> None:
    """No window ever gets those of another one."""
    forward = ToyForward()
    full = forward.run
    forward.run = lambda batch: full(batch)[:-1]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="shorter"):
        compute(queue, forward, [1], [2])


def test_a_full_queue_refuses_more(
    queue: Queue, gate: Gate, callers: Callers, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the time after which to try again. A call that finds nobody waiting is admitted, however large it is."""
    monkeypatch.setenv("MEDVLLM_MAX_QUEUED_TOKENS", "20")

    def run(ids: object) -> None:
        gate.wait()
        clock.now += 2.0

    forward = ToyForward(on_run=run)
    callers.start("first", lambda: compute(queue, forward, LONG, LONG, LONG), waits=False)
    gate.wait_for_batch()
    callers.start("large", lambda: compute(queue, forward, LONG, LONG, LONG))
    with pytest.raises(OverloadedError, match=r"24 tokens wait for their turn, and at most 20 may") as error:
        compute(queue, forward, [1])
    assert error.value.queued_tokens == 24 and error.value.limit == 20
    assert str(error.value).endswith("export MEDVLLM_MAX_QUEUED_TOKENS=25")
    gate.open()
    gate.wait_for_batch()
    with pytest.raises(OverloadedError) as error:
        compute(queue, forward, LONG, [1])
    assert error.value.retry_after_s == pytest.approx(error.value.queued_tokens * 2.0 / 8)  # type: ignore[operator]
    gate.open(5)
    assert len(callers.join()) == 2
    callers = Callers(queue)
    callers.start("again", lambda: compute(queue, forward, LONG, LONG, LONG), waits=False)
    gate.open(3)
    assert len(callers.join()["again"]) == 3


def test_a_model_that_asks_another_one_does_not_wait_for_itself(queue: Queue) -> None:
    """A batch that runs in this thread waits for this call, so the call runs at once."""
    inner = ToyForward("inner")
    outer = ToyForward("outer", on_run=lambda ids: inner.batches.append([compute(queue, inner, [1])]))  # type: ignore[list-item]
    assert compute(queue, outer, [2]) == [[4]]
    assert queue.statistics().running == 0


def test_a_caller_that_stops_in_between_leaves_nothing_behind(queue: Queue) -> None:
    """Whether it is closed, or held for ever by a traceback."""
    forward = ToyForward()
    held = queue.run(Call(forward, windows(LONG, LONG, LONG), current_limits()))
    next(held)
    assert queue.statistics().waiting_calls == queue.statistics().running == 0
    assert compute(queue, forward, [1]) == [[2]]
    held.close()  # type: ignore[attr-defined]
    assert compute(queue, forward, [1]) == [[2]]


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_in_a_thread_that_runs_for_others_fails_nobody_else(queue: Queue, gate: Gate, callers: Callers) -> None:
    """What it was running for them runs in another thread."""
    main = threading.get_ident()

    def run(ids: object) -> None:
        if ids == [LONG]:
            gate.wait()
        elif threading.get_ident() == main:
            _thread.interrupt_main()
            for _ in range(1000):  # the interpreter raises it at one of these steps
                pass

    def gather() -> None:
        wait_until(lambda: queue.statistics().waiting_calls == 1)
        for name in "ab":
            callers.start(name, lambda: compute(queue, forward, [1], [2]))
        gate.open()

    forward = ToyForward(on_run=run)
    callers.start("first", lambda: compute(queue, forward, LONG), waits=False)
    gate.wait_for_batch()
    gathering = threading.Thread(target=gather)
    gathering.start()
    with pytest.raises(KeyboardInterrupt):
        compute(queue, forward, [3])
    gathering.join()
    assert callers.join() == {"first": [[0.0] * 8], "a": [[2], [4]], "b": [[2], [4]]}
    assert forward.batches[1] == [[3], [1], [1], [2], [2]]  # the one that was interrupted
    assert queue.statistics().running == queue.statistics().waiting_calls == 0


def _interrupted(line: int, work: Callable[[], Any]) -> Any:
    """Do some work, and raise KeyboardInterrupt before a line of the queue's code, counted from 0."""
    left = line

    def trace_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        # A signal never comes between a block and the end of its `with`, where Python traces the line a second time.
        if event == "line" and not getline(frame.f_code.co_filename, frame.f_lineno).strip().startswith("with "):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace_line

    def trace_call(frame: FrameType, event: str, argument: object) -> Any:
        return trace_line if "/inference/" in frame.f_code.co_filename else None

    sys.settrace(trace_call)
    try:
        return work()
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("order", ["victim a b", "a victim b"])
def test_ctrl_c_at_any_line_costs_nobody_else_an_answer(gate: Gate, order: str) -> None:
    """Each of the others gets its numbers, once, and the queue is idle afterwards."""
    for line in count():
        queue = Queue(lambda device: 1)
        callers = Callers(queue)
        forward = ToyForward(budget=8, on_run=lambda ids: gate.wait() if ids == [LONG] else None)
        work = partial(compute, queue, forward, [1], [2], [3])
        callers.start("first", partial(compute, queue, forward, LONG), waits=False)
        gate.wait_for_batch()
        for name in order.split():
            callers.start(name, partial(_interrupted, line, work) if name == "victim" else work)
        gate.open()
        results = callers.join()
        assert results["a"] == results["b"] == [[2], [4], [6]]
        idle = queue.statistics()
        assert (idle.waiting_calls, idle.queued_tokens, idle.running) == (0, 0, 0)
        assert compute(queue, forward, [5]) == [[10]]
        if not isinstance(results["victim"], KeyboardInterrupt):
            assert results["victim"] == [[2], [4], [6]] and line > 50
            return


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_in_a_thread_that_waits_frees_its_place(queue: Queue, gate: Gate, callers: Callers) -> None:
    """Whoever waits behind it runs."""
    forward = ToyForward(on_run=gate.wait)
    callers.start("first", lambda: compute(queue, forward, LONG), waits=False)
    gate.wait_for_batch()

    def interrupt() -> None:
        wait_until(lambda: queue.statistics().waiting_calls == 1)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        compute(queue, forward, [13])
    interrupter.join()
    callers.start("next", lambda: compute(queue, forward, [1]))
    gate.open(2)
    assert callers.join()["next"] == [[2]]
    assert forward.batches == [[LONG], [[1]]]


@pytest.mark.usefixtures("interrupts")
def test_a_signal_handler_can_cancel_a_request(queue: Queue, gate: Gate, callers: Callers) -> None:
    """It takes no lock, so it cannot wait for the thread that it interrupts."""
    forward = ToyForward(on_run=gate.wait)
    callers.start("first", lambda: compute(queue, forward, LONG), waits=False)
    gate.wait_for_batch()
    request = Request()
    signal.signal(signal.SIGINT, lambda number, frame: request.cancel())

    def interrupt() -> None:
        wait_until(lambda: queue.statistics().waiting_calls == 1)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with request, pytest.raises(RequestCancelledError):
        compute(queue, forward, [1])
    interrupter.join()
    gate.open()
    callers.join()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_is_forked_beside_a_busy_queue_waits_for_nobody(
    queue: Queue, gate: Gate, callers: Callers
) -> None:
    """It has a queue of its own, and what a call of its thread had not received yet runs in it again."""
    parent = os.getpid()
    forward = ToyForward(budget=1, on_run=lambda ids: gate.wait() if os.getpid() == parent and ids != [[7]] else None)
    half_done = queue.run(Call(forward, windows([7], [8], [9]), current_limits()))
    assert next(half_done)[1].tolist() == [[14]]
    callers.start("runs", lambda: compute(queue, forward, [1], [2]), waits=False)
    gate.wait_for_batch()
    callers.start("waits", lambda: compute(queue, forward, [3]))
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        status = 1
        try:
            assert compute(queue, forward, [5]) == [[10]]
            assert [numbers.tolist() for _, numbers in half_done] == [[[16]], [[18]]]
            assert queue.statistics().waiting_calls == queue.statistics().running == 0
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.open(3)
    assert callers.join() == {"runs": [[2], [4]], "waits": [[6]]}


def test_many_threads_and_models_lose_no_window() -> None:
    """Each gets its own numbers, in whatever batches they were computed; some give up, some fail."""
    queue = Queue(lambda device: 2)
    forwards = [ToyForward(f"toy {i}", budget=16, on_run=_refuse(13)) for i in range(3)]

    def work(seed: int) -> bool:
        for turn in range(40):
            rows = [[1 + (seed * 7 + turn * 3 + i) % 12] * (1 + i % 4) for i in range(turn % 9)]
            forward = forwards[(seed + turn) % 3]
            if turn % 10 == 9:
                with pytest.raises(LoadError):
                    compute(queue, forward, *rows, [13])
                continue
            with Request(timeout_s=SECONDS, priority="bulk" if seed % 2 else "interactive"):
                if compute(queue, forward, *rows) != [[2.0 * number for number in row] for row in rows]:
                    return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))
    statistics = queue.statistics()
    assert (statistics.running, statistics.waiting_calls, statistics.forwards) == (0, 0, {})

"""The queue in which the windows of all threads wait for their turn.

It has no thread of its own. A caller that comes while its device is idle runs its windows at once, in its own thread.
While a batch runs, others gather. When it is done, the thread whose turn it is runs the next batch: its own next
window, and then windows of other callers for the same model, until the batch is full.
"""

import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from medvllm import settings
from medvllm.engine.model_runner.inference.batch import Batch
from medvllm.engine.model_runner.inference.call import Call, WorkItem
from medvllm.engine.model_runner.inference.queue_statistics import Counts, QueueStatistics
from medvllm.engine.model_runner.inference.rotation import Rotation
from medvllm.engine.model_runner.inference.run_items import run_items
from medvllm.engine.model_runner.inference.slots import count_slots
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.errors import OverloadedError
from medvllm.forking import Forked, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_REST_S = 1.0  # how long a fork waits for the lock


class Queue(Forked):
    """Lets calls share batches, and bounds how many batches run at once.

    Args:
        count_slots: Returns how many batches may run on a device at once.
        clock: Returns the seconds on a clock.
    """

    def __init__(self, count_slots: Callable[[str], int] = count_slots, clock: Callable[[], float] = monotonic) -> None:
        self._count_slots, self._clock = count_slots, clock
        self._forks = 0
        self._rests = False  # whether a fork holds the lock
        self._renew()
        register(self)

    def _renew(self) -> None:
        # Guards what follows, and the calls. Not our own class of lock: `with` must not be interrupted by Ctrl-C.
        self._lock = threading.Lock()
        self._rotation = Rotation(self._clock)
        self._leaders: set[Call] = set()  # those whose threads run a batch, or have been told to
        self._counts = Counts()

    def run(self, call: Call) -> "Iterator[tuple[Window, NDArray[np.float32]]]":
        """Yield each window of a call with its numbers, as they are ready.

        Raises:
            OverloadedError: Too many tokens of other calls wait.
            DeadlineError: The deadline of the call has passed.
            RequestCancelledError: Somebody cancelled the call.
            MedVLLMError: The model cannot run one of the windows.
        """
        self._admit(call)
        forks = self._forks
        while not call.is_complete:
            if forks != self._forks:  # this is a child, and the threads that ran the windows are not in it
                forks = self._forks
                call.put_all_back()
            yield from self._advance(call)

    def statistics(self) -> QueueStatistics:
        """Return what waits now, and what has run so far."""
        with self._lock:
            return self._counts.freeze(list(self._rotation), list(self._leaders))

    def before_fork(self) -> None:
        """Wait until no other thread changes the queue."""
        self._rests = self._lock.acquire(timeout=_REST_S)

    def after_fork(self, *, is_child: bool) -> None:
        """Go on. In a child, forget what its parent's threads wanted."""
        if is_child:
            self._forks += 1
            self._renew()
        elif self._rests:
            self._lock.release()

    def _admit(self, call: Call) -> None:
        """Raise OverloadedError if too many tokens wait. A call is always admitted while no other one waits.

        InputTooLongError: The request that the call is part of allows fewer tokens.
        """
        call.limits.take_tokens(call.tokens)
        with self._lock:
            queued = sum(waiting.tokens for waiting in self._rotation)
            wait_s = self._counts.estimate_s(queued, len(self._leaders))
        limit = settings.MAX_QUEUED_TOKENS() if queued else None
        if limit is not None and queued + call.tokens > limit:
            raise OverloadedError(
                f"The queue is full: {queued:,} tokens wait for their turn, and at most {limit:,} may. There is "
                f"no room for {call.tokens:,} more for model {call.forward.model!r}. They take about {wait_s:,.1f} s.\n"
                f"Try again then, or allow more: export {settings.MAX_QUEUED_TOKENS.name}={queued + call.tokens}",
                model=call.forward.model,
                queued_tokens=queued,
                limit=limit,
                retry_after_s=wait_s,
            )

    def _advance(self, call: Call) -> "list[tuple[Window, NDArray[np.float32]]]":
        """Run a batch in this thread, or wait for that of another one, and return the answers that came."""
        try:
            while True:
                with self._lock:
                    if call.has_news:
                        if call in self._leaders:  # its turn came as well
                            self._free(call)
                        return call.take_answers()
                    call.limits.check()
                    if call in self._leaders or (call.next_window and self._may_lead(call)):
                        self._lead(call)
                    else:
                        call.is_waiting = True
                        if call.next_window:
                            self._rotation.add(call)
                if call.batch:
                    self._run_batch(call)
                else:
                    call.find_layout()  # a call with one window needs it only here, where others may join it
                    call.limits.wait(call.bell)
        except BaseException:
            self._leave(call)
            raise

    def _may_lead(self, call: Call) -> bool:
        """Return whether this thread may run a batch. If it runs one already, that one waits for this call."""
        is_inside = any(leader.thread == threading.get_ident() for leader in self._leaders)
        return is_inside or self._has_slot(call.forward.device)

    def _has_slot(self, device: str) -> bool:
        running = sum(leader.forward.device == device for leader in self._leaders)
        return running < self._count_slots(device)

    def _lead(self, call: Call) -> None:
        """Choose the batch that a call's thread runs: its next window, then in turn windows that may run with it."""
        self._leaders.add(call)
        self._rotation.discard(call)
        call.is_waiting, call.thread = False, threading.get_ident()
        batch = Batch(call.budget, call.layout)
        for sharing in self._rotation.sharing(call.forward, call.limits.priority):
            joining = [call, *sharing]
            while joining:
                joining = [other for other in joining if self._add_next(call.batch, batch, other)]

    def _add_next(self, items: list[WorkItem], batch: Batch, call: Call) -> bool:
        """Add the next window of a call to a batch, and return whether there was one with room for it."""
        window = call.next_window
        if window is None or not batch.add(window):
            return False
        items.append(WorkItem(call, window))  # before it is taken: Ctrl-C may come in between
        call.take_window()
        if call.is_waiting:  # this was its turn
            self._rotation.discard(call)
            if call.next_window:
                self._rotation.add(call)
        return True

    def _run_batch(self, call: Call) -> None:
        """Run the batch of a call in this thread, and give each caller its answers."""
        begin = self._clock()
        for answers in run_items(call.batch):
            with self._lock:
                for item, answer in answers:
                    item.call.receive(item.window, answer)
                for item, _ in answers:
                    self._wake(item.call)
        with self._lock:
            self._counts.add(call.batch, self._clock() - begin)
            call.batch = []
            self._free(call)

    def _wake(self, call: Call) -> None:
        """Let a call that waits look for its answers. It gets no turn before it asks for more."""
        if call.is_waiting:
            call.bell.ring()
            self._rotation.discard(call)
            call.is_waiting = False

    def _free(self, call: Call) -> None:
        """End the turn of a call, and let the next ones have theirs."""
        device = call.forward.device
        self._leaders.discard(call)
        while (chosen := self._rotation.next(device)) and self._has_slot(device):
            chosen.bell.ring()
            self._leaders.add(chosen)
            self._rotation.end_turn(chosen)

    def _leave(self, call: Call) -> None:
        """Forget a call that wants no more answers. What its thread was running for others waits again."""
        with self._lock:
            call.has_left, call.is_waiting = True, False
            self._rotation.discard(call)
            for item in reversed(call.batch):
                item.call.put_back(item.window)
                if item.call.has_news:
                    self._wake(item.call)
                elif item.call.is_waiting and item.call.next_window:
                    self._rotation.restore(item.call)
            call.batch = []
            self._free(call)


queue = Queue()

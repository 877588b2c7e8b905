"""The windows of one call on their way through the queue."""

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from medvllm.engine.model_runner.bell import Bell
from medvllm.engine.model_runner.inference.forward import Forward, Layout
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.engine.model_runner.request import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Call:
    """The windows that one call wants to run. The queue changes it, under its lock.

    Ctrl-C may interrupt a method between any two steps. No window is then lost or answered twice.

    Args:
        forward: What runs the windows.
        windows: The windows, in the order in which they should run.
        limits: The deadline and the priority.

    Attributes:
        bell: Rings when the call has an answer, when its thread shall run a batch, or when its request is cancelled.
        batch: What its thread runs now.
        thread: The thread that runs it.
        is_waiting: Whether its thread waits.
        has_left: Whether its thread wants no more answers.
        tokens: The tokens of the windows that have not been taken.
        since_s: When it began to wait for its turn.
    """

    def __init__(self, forward: Forward, windows: Iterable[Window], limits: Limits) -> None:
        self.forward, self.limits = forward, limits
        self.budget = forward.budget
        self.layout: Layout = "single"  # until it is known
        self.bell = Bell()
        self.batch: list[WorkItem] = []
        self.thread = 0
        self.is_waiting = self.has_left = False
        self.since_s = 0.0
        self._queued = deque(windows)
        if len(self._queued) > 1:
            self.find_layout()
        # The windows that have been taken, by their id, and their numbers once they have run.
        self._taken: dict[int, tuple[Window, NDArray[np.float32] | None]] = {}
        self._error: Exception | None = None
        self.tokens = sum(len(window.input_ids) for window in self._queued)

    def find_layout(self) -> None:
        """Find out which windows may run together. The model may run for it, so the queue's lock must be free."""
        self.layout = self.forward.layout

    @property
    def is_complete(self) -> bool:
        """Whether each window has been answered."""
        return not (self._queued or self._taken or self._error)

    @property
    def has_news(self) -> bool:
        """Whether there are answers that the thread has not seen yet."""
        return self._error is not None or any(numbers is not None for _, numbers in self._taken.values())

    @property
    def is_over(self) -> bool:
        """Whether its windows need not run any more."""
        return self.has_left or self._error is not None or self.limits.is_over

    @property
    def queued_windows(self) -> int:
        """The number of windows that have not been taken."""
        return len(self._queued)

    @property
    def next_window(self) -> Window | None:
        """The next window that should run; None if all have been taken."""
        return self._queued[0] if self._queued else None

    def take_window(self) -> None:
        """Take the next window to run it."""
        window = self._queued[0]
        self._taken[id(window)] = window, None
        self._queued.popleft()
        self.tokens -= len(window.input_ids)

    def put_back(self, window: Window) -> None:
        """Take back a window that has not run, if it has been taken."""
        if self._taken.get(id(window), (None, ...))[1] is not None:
            return
        if window is not self.next_window:
            self._queued.appendleft(window)
            self.tokens += len(window.input_ids)
        del self._taken[id(window)]

    def put_all_back(self) -> None:
        """Take back all windows that other threads run: in a forked child, these threads do not exist."""
        for window, _ in list(self._taken.values()):
            self.put_back(window)

    def receive(self, window: Window, answer: "NDArray[np.float32] | Exception") -> None:
        """Receive what a window gave. After an error, nothing else of the call runs."""
        if isinstance(answer, Exception):
            self._error = self._error or answer
            self._queued.clear()
            self.tokens = 0
        else:
            self._taken[id(window)] = window, answer

    def take_answers(self) -> "list[tuple[Window, NDArray[np.float32]]]":
        """Return the answers that came since the last time. Raises the error of a window that could not run."""
        if self._error is not None:
            raise self._error
        answers = [(window, numbers) for window, numbers in self._taken.values() if numbers is not None]
        for window, _ in answers:
            del self._taken[id(window)]
        return answers


class WorkItem:
    """A window of a call."""

    __slots__ = ("call", "window")

    def __init__(self, call: Call, window: Window) -> None:
        self.call, self.window = call, window

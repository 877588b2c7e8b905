"""A timer for the next idle model that expires."""

import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from medvllm.model_cache.accounts import CachedModel
from medvllm.quantities import PINNED

_SHORTEST_S = 0.05


class ExpiryTimer:
    """Calls a method when the next model expires. There is one daemon thread, and only while one is needed."""

    def __init__(self, expire: Callable[[], object]) -> None:
        # A weak reference: a cache that nobody else holds is freed, with its models.
        self._expire = weakref.WeakMethod(expire)
        self._timer: threading.Timer | None = None
        self._due = 0.0  # when it runs out

    @property
    def is_set(self) -> bool:
        """Whether a timer runs."""
        return self._timer is not None

    def set(self, idle: Iterable[CachedModel[Any]], now: float) -> None:
        """Start the timer for the first of the idle models that expires, in place of the one that runs."""
        times = [model.last_used + model.keep_alive for model in idle if model.keep_alive not in (None, PINNED)]
        self.stop()
        if times:
            self._start(min(times), now)

    def set_by(self, due: float, now: float) -> None:
        """Start the timer for a moment, unless it runs out before then: whoever it calls sets it again.

        So a model that is used all the time starts no timer with each use.
        """
        if due != PINNED and (self._timer is None or not now < self._due <= due):
            self.stop()
            self._start(due, now)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, due: float, now: float) -> None:
        self._timer, self._due = threading.Timer(max(due - now, _SHORTEST_S), _call, [self._expire]), due
        self._timer.daemon = True
        with suppress(RuntimeError):  # no thread is available: the models leave with the next call that looks
            self._timer.start()


def _call(method: "weakref.WeakMethod[Callable[[], object]]") -> None:
    if (expire := method()) is not None:
        expire()

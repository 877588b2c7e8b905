"""Makes a fork safe while other threads run.

A fork copies only the thread that calls it. If another thread holds a lock at that moment, the child would wait for the
lock forever. So each object with a lock registers here. Before a fork, each one finishes what it is doing if that takes
little time, so the child does not copy half-changed state. After the fork, the child's objects get new locks.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from weakref import WeakSet

_REST_S = 1.0  # how long a fork waits for a lock; most sections under a lock are much shorter


class Forked:
    """An object that must prepare for a fork. Pass it to `register` after it is created."""

    def before_fork(self) -> None:
        """Prepare for the fork, in the thread that calls it. This must not take long."""

    def after_fork(self, *, is_child: bool) -> None:
        """Continue after the fork. In the child, replace the locks by new ones."""


class Lock(Forked):
    """A lock that is free in a forked child. A fork waits until no thread holds the lock, for at most `rest_s` seconds.

    Args:
        reentrant: Whether a thread that holds the lock may take it again.
        rest_s: How long a fork waits for the lock.
        forked: Called in the child after the fork.

    Attributes:
        was_busy: In a child, whether a thread of the parent still held the lock at the fork.
    """

    def __init__(
        self, *, reentrant: bool = False, rest_s: float = _REST_S, forked: Callable[[], None] = lambda: None
    ) -> None:
        self._make = threading.RLock if reentrant else threading.Lock
        self._rest_s, self._forked = rest_s, forked
        self._lock = self._make()
        self.was_busy = False
        self._rests = False
        register(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Take the lock, if it becomes free in time."""
        self._rests = self._lock.acquire(timeout=self._rest_s)

    def after_fork(self, *, is_child: bool) -> None:
        """Release the lock. In a child, replace it."""
        if is_child:
            self.was_busy = not self._rests
            self._lock = self._make()
            self._forked()
        elif self._rests:
            self._lock.release()


def register(part: Forked) -> None:
    """Call the methods of an object at each fork. Only a weak reference to it is kept."""
    _parts.add(part)


def _before() -> None:
    _forks.acquire()
    _forking.extend(_registered())
    for part in _forking:
        with suppress(Exception):  # an object that fails must not prevent the fork
            part.before_fork()


def _registered() -> list[Forked]:
    while True:
        with suppress(RuntimeError):  # another thread registered an object while the set was read
            return list(_parts)


def _after(*, is_child: bool) -> None:
    while _forking:
        with suppress(Exception):
            _forking.pop().after_fork(is_child=is_child)
    _forks.release()


_parts: "WeakSet[Forked]" = WeakSet()
_forks = threading.Lock()  # held during a fork, so that there is one at a time
_forking: list[Forked] = []
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before, after_in_parent=partial(_after, is_child=False), after_in_child=partial(_after, is_child=True)
    )

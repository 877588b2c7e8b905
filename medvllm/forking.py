"""Makes forks safe beside threads: in a child, all locks are free, and no state is half changed.

Every object that holds a lock registers here. Before a fork, it waits a moment for its lock, so that no other thread is
in the middle of a change. After the fork, the child's objects have new locks.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from weakref import WeakSet

_REST_S = 1.0  # how long a fork waits for a lock; the sections under a lock are short


class Forked:
    """An object that must prepare for a fork. Call `register` once it is made."""

    def before_fork(self) -> None:
        """Prepare for a fork. The forking thread calls it, and it must not wait for long."""

    def after_fork(self, *, is_child: bool) -> None:
        """Continue after a fork. In a child, make new locks."""


class Lock(Forked):
    """A lock that is free in a forked child.

    Args:
        reentrant: Whether a thread may take the lock again while it holds it.
        rest_s: How many seconds a fork waits for a thread that holds the lock.
        forked: Called in a child.

    Attributes:
        was_busy: In a child: whether another thread of the parent held the lock during the fork.
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
        """Take the lock."""
        self._rests = self._lock.acquire(timeout=self._rest_s)

    def after_fork(self, *, is_child: bool) -> None:
        """Release the lock. A child gets a new one."""
        if is_child:
            self.was_busy = not self._rests
            self._lock = self._make()
            self._forked()
        elif self._rests:
            self._lock.release()


def register(part: Forked) -> None:
    """Call the methods of an object at each fork, as long as the object exists."""
    _parts.add(part)


def _before() -> None:
    _forks.acquire()
    _forking.extend(_list_parts())
    for part in _forking:
        with suppress(Exception):  # an object that fails must not prevent the fork
            part.before_fork()


def _list_parts() -> list[Forked]:
    while True:
        with suppress(RuntimeError):  # another thread has registered an object meanwhile
            return list(_parts)


def _after(*, is_child: bool) -> None:
    while _forking:
        with suppress(Exception):
            _forking.pop().after_fork(is_child=is_child)
    _forks.release()


_parts: "WeakSet[Forked]" = WeakSet()
_forks = threading.Lock()  # held during a fork: one at a time
_forking: list[Forked] = []
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before, after_in_parent=partial(_after, is_child=False), after_in_child=partial(_after, is_child=True)
    )

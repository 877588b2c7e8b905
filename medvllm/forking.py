"""Forks beside threads: a child's locks are free, and it has no work under way that only a thread of its parent ends.

What holds a lock registers here. Before a fork each part comes to rest, as long as that takes no time, so that a child
gets no half-changed state; after it, a child's parts take new locks.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from weakref import WeakSet

_REST_S = 1.0  # for sections of a few steps; a thread that is longer in one is not waited for


class Forked:
    """A part of this process that a fork must not copy as it is. `register` it once it is made."""

    def before_fork(self) -> None:
        """Come to rest, in the thread that forks. It must not wait for long."""

    def after_fork(self, *, is_child: bool) -> None:
        """Go on; in a child, with locks that nobody holds."""


class Lock(Forked):
    """A lock that a child finds free, and that no thread holds while another one forks, but for `rest_s` at most."""

    def __init__(
        self, *, reentrant: bool = False, rest_s: float = _REST_S, forked: Callable[[], None] = lambda: None
    ) -> None:
        self._make = threading.RLock if reentrant else threading.Lock
        self._rest_s, self._forked = rest_s, forked  # the latter is called in a child
        self._lock = self._make()
        self.was_busy = False  # in a child: a thread of the parent was inside when it forked
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
        """Let go of it; in a child it is another one."""
        if is_child:
            self.was_busy = not self._rests
            self._lock = self._make()
            self._forked()
        elif self._rests:
            self._lock.release()


def register(part: Forked) -> None:
    """Have a part told of forks for as long as anybody holds it."""
    _parts.add(part)


def _before() -> None:
    _forks.acquire()
    _forking.extend(_list_parts())
    for part in _forking:
        with suppress(Exception):  # a part that cannot rest keeps no process from its fork
            part.before_fork()


def _list_parts() -> list[Forked]:
    while True:
        with suppress(RuntimeError):  # another thread has registered a part meanwhile
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

"""Wakes a thread that waits."""

from contextlib import suppress
from threading import TIMEOUT_MAX, Lock


class Bell:
    """Wakes the one thread that waits for it. `threading.Event` would take a lock, which a signal handler must not."""

    def __init__(self) -> None:
        self._silence = Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake the thread that waits, or the next one that would wait."""
        with suppress(RuntimeError):  # it has been rung already
            self._silence.release()

    def wait(self, seconds: float) -> None:
        """Wait until the bell rings, for at most so many seconds."""
        self._silence.acquire(timeout=min(seconds, TIMEOUT_MAX))

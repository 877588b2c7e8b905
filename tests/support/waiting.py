"""Waits until something is so, for tests of threads and processes."""

import time
from collections.abc import Callable

_SECONDS = 60  # after which a test gives up


def wait_until(is_so: Callable[[], bool], *, step_s: float = 0.001) -> None:
    """Wait until something is so, and look each `step_s` seconds."""
    end = time.monotonic() + _SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(step_s)

"""A clock on which waiting takes no time."""

import sys
import time
from typing import Any

import pytest


class HurriedClock:
    """The module `time`, whose `sleep` returns at once and sets the clock forward by as much."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def sleep(self, seconds: float) -> None:
        """Set the clock forward."""
        self.slept_s += seconds

    def monotonic(self) -> float:
        """Return the seconds on this clock."""
        return time.monotonic() + self.slept_s

    def time(self) -> float:
        """Return the seconds since the epoch on this clock."""
        return time.time() + self.slept_s

    def time_ns(self) -> int:
        """Return the nanoseconds since the epoch on this clock."""
        return time.time_ns() + int(self.slept_s * 1e9)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def hurry(patch: pytest.MonkeyPatch, *packages: str) -> HurriedClock:
    """Give the imported modules of these packages one such clock, and return it."""
    clock = HurriedClock()
    for name, module in list(sys.modules.items()):
        if name.startswith(packages) and vars(module).get("time") is time:
            patch.setattr(module, "time", clock)
    return clock

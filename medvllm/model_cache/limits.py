"""The limits of a cache: bytes for each device, and a number of models."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """The limits of one device at one moment; None means no limit."""

    budget_bytes: int | None
    max_models: int | None


@dataclass(frozen=True)
class Limits:
    """The limits of a cache, as functions that are called when a limit is needed.

    Attributes:
        budget: Returns the bytes of models that a device may hold; None means no limit.
        max_models: Returns how many models may be in memory; None means no limit.
        wait_s: Returns how many seconds a load waits for memory that callers may free.
        free_memory: Gives the memory of evicted models back to their devices. It is given weak references to them: one
            that is still in memory may be garbage that nobody has collected.
        on_change: Called when a model enters or leaves the cache, or is leased for the first time. The cache often
            holds its lock then, so the function must return at once.
    """

    budget: Callable[[str], int | None] = lambda device: None
    max_models: Callable[[], int | None] = lambda: None
    wait_s: Callable[[], float] = lambda: 0.0
    free_memory: Callable[[Sequence["weakref.ref[Any]"]], None] = lambda evicted: None
    on_change: Callable[[], None] = lambda: None

    def bounds(self, device: str) -> Bounds:
        """Return the limits of a device now. Raises SettingError for a setting that cannot be parsed."""
        return Bounds(self.budget(device), self.max_models())

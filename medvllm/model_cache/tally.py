"""A count to which threads add without a lock."""

from itertools import count


class Tally:
    """Counts from 0.

    Attributes:
        add: Adds one. Any thread may call it: it is one step of the interpreter.
    """

    __slots__ = ("_looks", "_numbers", "add")

    def __init__(self) -> None:
        self._numbers = count()
        self._looks = 0  # each look takes a number, too
        self.add = self._numbers.__next__

    def value(self) -> int:
        """Return how often `add` was called. One thread at a time may ask."""
        self._looks += 1
        return next(self._numbers) - self._looks + 1

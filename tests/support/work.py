"""How much a call does, whatever the speed of the machine."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

_TIMES = 200  # a thread that has to wait looks again


def least_work(call: Callable[[], object]) -> tuple[int, list[str]]:
    """Return how many functions of Python a call calls, and which functions of the system, when it does least."""
    counts: list[tuple[int, list[str]]] = []
    for _ in range(_TIMES):
        work: list[Any] = []

        def note(frame: FrameType, event: str, argument: Any, work: list[Any] = work) -> None:
            if event in ("call", "c_call"):
                work.append(argument)

        sys.setprofile(note)
        try:
            call()
        finally:
            sys.setprofile(None)
        functions = sum(argument is None for argument in work) - 1  # without the function that calls
        of_system = [name.__name__ for name in work if getattr(name, "__module__", None) in ("posix", "nt", "_io")]
        counts.append((functions, of_system))
    return min(counts)

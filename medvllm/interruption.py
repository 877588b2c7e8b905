"""What may end a call before it is complete: a deadline, or somebody who cancels it."""

from contextvars import ContextVar
from typing import Protocol

LOOK_S = 0.1  # between two looks of a thread that waits for another one


class Interruptible(Protocol):
    """Something in which calls run, such as a request, and which may end them."""

    def check(self) -> None:
        """Raise an error if its calls must end."""


active: "ContextVar[tuple[Interruptible, ...]]" = ContextVar("active", default=())
"""What the present thread or asyncio task runs in, the outermost first."""


def check() -> None:
    """Raise an error if what this thread runs in must end."""
    for each in active.get():
        each.check()

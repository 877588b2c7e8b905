"""Single flight: callers that want the same thing at the same time share one attempt to make it."""

import copy
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from medvllm import interruption
from medvllm.errors import LoadError, MedVLLMError

V = TypeVar("V")


class Flight(Generic[V]):
    """One attempt in progress.

    The owner of the flight changes `waiting`, `is_leaving`, `keep_alive` and `value`, under its own lock.
    """

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.waiting = 0  # leases that callers have already asked for
        self.is_leaving = False  # evicted before it was loaded
        self.keep_alive: float | None = None  # what the last caller that gave one asked for
        self.value: V | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()

    @property
    def is_own(self) -> bool:
        """Whether the calling thread runs the attempt. It must not wait for itself."""
        return self.owner == threading.get_ident()

    def run(self, make: Callable[[], V], publish: Callable[[V], None], fail: Callable[[], None]) -> V:
        """Run the attempt and return its value.

        `publish`, which sets `value`, or `fail` runs before any caller that waits wakes up.
        """
        try:
            value = make()
            publish(value)
            return value
        except BaseException as error:
            self._error = error
            fail()
            raise
        finally:
            self._done.set()

    def wait(self) -> V:
        """Wait for the attempt and return its value, or raise its error, or that of a request which is over."""
        while not self._done.wait(interruption.LOOK_S if interruption.active.get() else None):
            interruption.check()
        error = self._error
        if isinstance(error, MedVLLMError):
            # Each thread raises its own copy: a shared error would collect the traceback of every thread.
            raise copy.copy(error) from error.__cause__
        if error is not None:
            raise LoadError(f"The load that this call waited for failed: {type(error).__name__}.") from error
        assert self.value is not None  # `publish` has set it
        return self.value

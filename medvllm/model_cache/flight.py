"""Single flight: callers that want one thing at the same time share one attempt to make it."""

import copy
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from medvllm.errors import LoadError, MedVLLMError

V = TypeVar("V")


class Flight(Generic[V]):
    """One attempt under way. The cache changes `waiting`, `leaving`, `keep_alive` and `value`, under its lock."""

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.waiting = 0  # leases that callers have asked for already
        self.leaving = False  # evicted before it landed
        self.keep_alive: float | None = None  # what the last caller that said so asked for
        self.value: V | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()

    @property
    def is_own(self) -> bool:
        """Return whether this very thread makes it: it must not wait for itself."""
        return self.owner == threading.get_ident()

    def make(self, make: Callable[[], V], landed: Callable[[V], None], failed: Callable[[], None]) -> V:
        """Run the attempt. `landed`, which sets `value`, or `failed` runs before anybody who waits wakes up."""
        try:
            value = make()
            landed(value)
            return value
        except BaseException as error:
            self._error = error
            failed()
            raise
        finally:
            self._done.set()

    def wait(self) -> V:
        """Return what the attempt made, or raise its error: once for all who waited."""
        self._done.wait()
        error = self._error
        if isinstance(error, MedVLLMError):
            # Each thread raises an error of its own: a shared one would collect every thread's traceback.
            raise copy.copy(error) from error.__cause__
        if error is not None:
            raise LoadError(f"The load that this call waited for failed: {type(error).__name__}.") from error
        assert self.value is not None  # neither failed nor landed cannot be
        return self.value

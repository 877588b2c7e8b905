"""Single flight: callers that want one thing at the same time share one attempt to make it."""

import copy
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from medvllm.errors import LoadError, MedVLLMError

V = TypeVar("V")


class Flight(Generic[V]):
    """One attempt under way: who makes it, and how many wait for it."""

    def __init__(self) -> None:
        self.owner = threading.get_ident()
        self.waiting = 0
        self._future: Future[V] = Future()

    def make(self, make: Callable[[], V], landed: Callable[[V], None], failed: Callable[[], None]) -> V:
        """Run the attempt. `landed` or `failed` runs before anybody who waits wakes up."""
        try:
            value = make()
            landed(value)
        except BaseException as error:
            failed()
            self._future.set_exception(
                error
                if isinstance(error, Exception)
                else LoadError("The load that this call waited for was interrupted.")
            )
            raise
        self._future.set_result(value)
        return value

    def wait(self, what: Hashable) -> V:
        """Return what the attempt made, or raise its error: once for all who waited."""
        if self.owner == threading.get_ident():
            raise LoadError(f"Loading {what} asks for itself, so it would wait for ever.")
        try:
            return self._future.result()
        except MedVLLMError as error:
            # Each thread raises an error of its own: a shared one would collect every thread's traceback.
            raise copy.copy(error) from error

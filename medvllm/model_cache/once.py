"""Values that are made once by key: a slow one holds up nobody who wants another."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from medvllm.forking import Lock
from medvllm.model_cache.flight import Flight

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Once(Generic[K, V]):
    """A memory of what was made; callers that want one thing at the same time share one attempt."""

    def __init__(self) -> None:
        self._lock = Lock(forked=self._drop_flights)  # guards both below; never held while anything is made
        self._kept: dict[K, V] = {}
        self._flights: dict[K, Flight[V]] = {}

    def get(self, key: K, make: Callable[[], V], *, may_wait: bool = True) -> V:
        """Return the value of a key, made now if it is not here.

        With `may_wait` False, it is made again rather than waited for: who holds something that the maker may need.
        """
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            flight = self._flights.get(key)
            if first := flight is None:
                flight = self._flights[key] = Flight()
        if not first:
            return flight.wait() if may_wait and not flight.is_own else make()

        def landed(value: V) -> None:
            with self._lock:
                flight.value = value
                if self._landed(key, flight) and not flight.leaving:
                    self._kept[key] = value

        def failed() -> None:
            with self._lock:
                self._landed(key, flight)

        return flight.make(make, landed, failed)

    def drop(self, is_gone: Callable[[K], bool]) -> None:
        """Forget some; what is being made goes to those who wait for it, and is not kept."""
        with self._lock:
            self._kept = {key: value for key, value in self._kept.items() if not is_gone(key)}
            for key, flight in self._flights.items():
                flight.leaving |= is_gone(key)

    def _landed(self, key: K, flight: Flight[V]) -> bool:
        """Take a flight out; False when it is not under way here: a fork has left it to its parent."""
        if self._flights.get(key) is not flight:
            return False
        del self._flights[key]
        return True

    def _drop_flights(self) -> None:
        self._flights = {}

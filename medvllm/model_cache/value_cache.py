"""A cache of values, each made once by the first caller that asks for it."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from medvllm.forking import Lock
from medvllm.model_cache.flight import Flight

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ValueCache(Generic[K, V]):
    """Values by key, such as tokenizers. Callers that ask for one key at the same time share one attempt.

    Making a value delays nobody who asks for another key.
    """

    def __init__(self) -> None:
        self._lock = Lock(forked=self._forget_flights)  # guards both below; never held while a value is made
        self._values: dict[K, V] = {}
        self._flights: dict[K, Flight[V]] = {}

    def get(self, key: K, make: Callable[[], V], *, may_wait: bool = True) -> V:
        """Return the value of a key, making it if it is not cached.

        Args:
            key: The key.
            make: Makes the value.
            may_wait: Whether the call may wait for another thread that makes the value. A caller that holds something
                which that thread may need must not wait; it makes a value of its own.
        """
        with self._lock:
            if key in self._values:
                return self._values[key]
            flight = self._flights.get(key)
            if is_first := flight is None:
                flight = self._flights[key] = Flight()
        if not is_first:
            return flight.wait() if may_wait and not flight.is_own else make()

        def publish(value: V) -> None:
            with self._lock:
                flight.value = value
                if self._end_flight(key, flight) and not flight.is_leaving:
                    self._values[key] = value

        def fail() -> None:
            with self._lock:
                self._end_flight(key, flight)

        return flight.run(make, publish, fail)

    def discard(self, is_unwanted: Callable[[K], bool]) -> None:
        """Forget the values whose key is unwanted. One that is being made goes to its callers, and is not cached."""
        with self._lock:
            self._values = {key: value for key, value in self._values.items() if not is_unwanted(key)}
            for key, flight in self._flights.items():
                flight.is_leaving |= is_unwanted(key)

    def _end_flight(self, key: K, flight: Flight[V]) -> bool:
        """Remove an attempt that is over; return False if this is a forked child and the attempt its parent's."""
        if self._flights.get(key) is not flight:
            return False
        del self._flights[key]
        return True

    def _forget_flights(self) -> None:
        self._flights = {}

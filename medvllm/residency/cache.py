"""The models in memory: found in a microsecond, loaded once, kept while they are leased."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from medvllm.errors import LoadError
from medvllm.residency.flight import Flight


class Weighed(Protocol):
    """What a load function returns."""

    @property
    def model(self) -> Any: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def load_s(self) -> float: ...


class Named(Protocol):
    """What models are told apart by: hashable, and it knows the entry's name."""

    @property
    def name(self) -> str: ...


I = TypeVar("I", bound=Named)  # noqa: E741  # the identity's type


@dataclass(eq=False)
class Resident(Generic[I]):
    """A model in memory. Only the cache changes it, under its lock."""

    identity: I
    model: Any
    size_bytes: int
    load_s: float
    loaded_at: float  # seconds since the epoch
    last_used: float = 0.0
    hits: int = 0
    leases: int = 0
    present: bool = True  # False once it has left
    leaving: bool = False  # evicted while leased: it goes when the last lease ends


class ModelCache(Generic[I]):
    """The models in memory by identity; ``name in cache`` and iteration go by name.

    The lock is held for look-ups only, never during a load. A model that was evicted but that a caller still holds is
    remembered weakly, and asked for again it comes back without a load.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards everything below
        self._residents: dict[I, Resident[I]] = {}
        self._flights: dict[I, Flight[Resident[I]]] = {}
        self._held: dict[I, tuple[weakref.ref[Any], Resident[I]]] = {}

    def hit(self, resident: Resident[I], *, lease: bool = False) -> bool:
        """Count a use of a model that the caller found before; False when it has left since."""
        now = self._clock()
        # No call inside: a thread that is switched out while it holds the lock makes all others queue.
        with self._lock:
            if resident.present:
                resident.hits += 1
                resident.last_used = now
                resident.leases += lease
                resident.leaving = False
                return True
        return False

    def get(
        self, identity: I, load: Callable[[], Weighed], *, lease: bool = False, may_wait: bool = True
    ) -> Resident[I]:
        """Return the resident model of `identity`; callers that come during a load share it.

        With `lease`, the model is leased before any other thread can evict it; give it back with `release`. A caller
        that is itself inside a load must not wait for another one (each could wait for the other): with
        ``may_wait=False`` it gets a model of its own instead.
        """
        with self._lock:
            resident = self._use(identity, lease)
            if resident is not None:
                return resident
            flight = self._flights.get(identity)
            if first := flight is None:
                flight = self._flights[identity] = Flight()
            elif flight.owner == threading.get_ident():
                raise LoadError(f"Loading {identity.name!r} asks for itself, so it would wait for ever.")
            if first or may_wait:
                flight.waiting += lease
                flight.leaving = False

        def make() -> Resident[I]:
            loaded = load()
            now = self._clock()
            return Resident(identity, loaded.model, loaded.size_bytes, loaded.load_s, loaded_at=now, last_used=now)

        def landed(resident: Resident[I]) -> None:
            with self._lock:
                del self._flights[identity]
                flight.value = resident
                resident.leases, resident.leaving = flight.waiting, flight.leaving
                self._residents[identity] = resident
                if resident.leaving and not resident.leases:
                    self._drop(resident)

        def failed() -> None:
            with self._lock:
                self._flights.pop(identity, None)

        if first:
            return flight.make(make, landed, failed)
        if not may_wait:
            return replace(make(), leases=int(lease))
        try:
            return flight.wait()
        except BaseException:  # also Ctrl-C while waiting: the lease that was asked for must not stay
            if lease:
                self._withdraw(flight)
            raise

    def release(self, resident: Resident[I]) -> None:
        """Give a lease back."""
        with self._lock:
            resident.leases -= 1
            if resident.leaving and not resident.leases and self._residents.get(resident.identity) is resident:
                self._drop(resident)

    def evict(self, name: str | None = None) -> int:
        """Let the models of an entry go, all models when None; return how many left.

        A leased model stays until its last lease ends; one that is being loaded goes to its callers alone.
        """
        with self._lock:
            for identity, flight in self._flights.items():
                flight.leaving |= name is None or identity.name == name
            chosen = [r for r in self._residents.values() if name is None or r.identity.name == name]
            for resident in chosen:
                resident.leaving = True
                if not resident.leases:
                    self._drop(resident)
            return sum(not resident.leases for resident in chosen)

    def residents(self) -> list[tuple[Resident[I], bool]]:
        """Return the models in memory, each with whether it was evicted and only a caller holds it."""
        with self._lock:
            self._forget_dead()
            return [(r, False) for r in self._residents.values()] + [(r, True) for _, r in self._held.values()]

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return any(identity.name == name for identity in self._residents)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(dict.fromkeys(identity.name for identity in self._residents)))

    def __len__(self) -> int:
        with self._lock:
            return len(self._residents)

    def _withdraw(self, flight: Flight[Resident[I]]) -> None:
        with self._lock:
            if flight.value is None:
                flight.waiting -= 1
                return
        self.release(flight.value)

    def _use(self, identity: I, lease: bool) -> Resident[I] | None:
        resident = self._residents.get(identity) or self._take_back(identity)
        if resident is not None:
            resident.hits += 1
            resident.leases += lease
            resident.last_used = self._clock()
            resident.leaving = False
        return resident

    def _take_back(self, identity: I) -> Resident[I] | None:
        reference, resident = self._held.pop(identity, (None, None))
        model = reference() if reference is not None else None
        if model is None or resident is None:
            return None
        resident.model, resident.present = model, True
        self._residents[identity] = resident
        return resident

    def _drop(self, resident: Resident[I]) -> None:
        del self._residents[resident.identity]
        resident.present = False
        self._forget_dead()
        # A copy without the model: whoever has just been handed `resident` still reads its model.
        self._held[resident.identity] = weakref.ref(resident.model), replace(resident, model=None, leaving=False)

    def _forget_dead(self) -> None:
        self._held = {identity: kept for identity, kept in self._held.items() if kept[0]() is not None}

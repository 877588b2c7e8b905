"""The models in memory: found in a microsecond, loaded once, kept while they are leased, and within a budget.

The file is long because all of this changes under one lock. What needs no lock has a file of its own beside it.
"""

import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Generic

from medvllm import interruption
from medvllm.errors import DeadlineError, DeviceMemoryError, LoadError, RequestCancelledError
from medvllm.forking import Forked, register
from medvllm.load_result import LoadResult
from medvllm.model_cache.accounts import CachedModel, I, Named
from medvllm.model_cache.expiry import ExpiryTimer
from medvllm.model_cache.flight import Flight
from medvllm.model_cache.limits import Limits
from medvllm.model_cache.plan import Need, Plan
from medvllm.model_cache.policy import is_expired
from medvllm.model_cache.room import Room
from medvllm.model_cache.statistics import Reason, Statistics
from medvllm.quantities import stay_after

_LINGER_S = 2.0  # a model is listed as leased for so long after its last lease: servers lease one for each request
_FORK_S = 1.0  # seconds that a fork waits for a thread that holds the lock


class ModelCache(Forked, Generic[I]):
    """The models in memory by identity. ``name in cache`` and iteration go by the entry's name.

    The lock is held for look-ups only, never during a load. Memory is reserved before a load begins, so the cache
    exceeds its budget only by what callers hold. An evicted model that a caller still holds keeps counting, by a weak
    reference, and comes back without a load when it is asked for again.

    Args:
        limits: The limits of the cache; without them it has none.
        clock: Returns monotonic seconds.
    """

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limits = limits or Limits()
        self._room: Room[I] = Room(self._limits, clock)
        self._accounts = self._room.accounts
        self._lock = self._room.lock  # guards everything here, and the room
        self._flights: dict[I, Flight[CachedModel[I]]] = {}  # the loads in progress
        self._counts = self._room.counts
        self._returned: deque[CachedModel[I]] = deque()  # leases that ended while their thread held the lock
        self._expiry = ExpiryTimer(self.expire)
        register(self)

    def before_fork(self) -> None:
        """Take the lock, so that a child finds consistent accounts."""
        self._is_held_for_fork = self._lock.acquire(timeout=_FORK_S)

    def after_fork(self, *, is_child: bool) -> None:
        """Release the lock. A child gets a lock of its own and no loads: their threads exist in the parent only."""
        if not is_child:
            if self._is_held_for_fork:
                self._lock.release()
            return
        self._room.reset_after_fork()
        self._lock = self._room.lock
        self._flights = {}
        for cached in self._accounts.models.values():
            cached.is_listed_as_leased = False
        if self._expiry.is_set:
            self._set_expiry()

    def hit(self, cached: CachedModel[I], *, lease: bool = False, keep_alive: float | None = None) -> bool:
        """Count a use of a model that the caller has found before; return False if it has left the cache since.

        Args:
            cached: The model.
            lease: As for `get`.
            keep_alive: As for `get`.
        """
        if not cached.is_present:
            return False
        # Without the lock: a thread that is switched out while it holds the lock makes all others queue. Each line is
        # one step. A model that leaves the cache between two of them leaves it after the hit.
        cached.last_used = now = self._clock()
        cached.is_leaving = False
        if cached.identity.base is not None and (base := self._accounts.base_of(cached)) is not None:
            base.last_used = now
        is_new = keep_alive is not None and (keep_alive != cached.keep_alive or not keep_alive)
        if lease or is_new:
            with self._lock:
                if not cached.is_present:
                    return False
                cached.leases += lease
                if is_new:
                    cached.keep_alive = stay_after(cached.keep_alive, keep_alive)
                    self._settle(cached)
        cached.hits.add()
        self._counts.hits.add()
        if lease and not cached.is_listed_as_leased:
            self._list_as_leased(cached)
        return True

    def get(
        self,
        identity: I,
        load: Callable[[], LoadResult],
        *,
        need: Need | None = None,
        lease: bool = False,
        keep_alive: float | None = None,
        may_wait: bool = True,
    ) -> CachedModel[I]:
        """Return the model of an identity, loading it if it is not in memory. Callers that ask during a load share it.

        Args:
            identity: The model.
            load: Loads the model. The cache calls it without its lock, in one thread at a time for each identity.
            need: The memory that the load is expected to take.
            lease: Whether to lease the model before another thread can evict it. Return it with `release`.
            keep_alive: How many seconds the model stays after its last use, from now on. None changes nothing.
            may_wait: Whether the call may wait for another load. A caller that is inside a load itself must not, as
                each could wait for the other; it gets a private copy instead.

        Raises:
            BudgetError: There is not enough memory, and waiting did not help.
            LoadError: A load asks for itself. Errors of `load` are raised as they are.
            MedVLLMError: The request that the call is part of is over.
        """
        need = need or Need()
        while True:
            # A hit, or a load in progress that this call joins, or a new one.
            with self._lock:
                self._end_returned_leases()
                cached = self._use(identity, lease, keep_alive, need)
                if cached is not None:
                    return cached
                flight = self._flights.get(identity)
                if is_first := flight is None:
                    flight = self._flights[identity] = Flight()
                    self._counts.misses += 1
                elif flight.is_own:
                    raise LoadError(
                        f"The load of model {identity.name!r} asks for the same model, so it would never end."
                    )
                if is_first or may_wait:
                    self._counts.shared_waits += not is_first
                    flight.waiting += lease
                    flight.is_leaving = False
                    asked = flight.keep_alive
                    flight.keep_alive = keep_alive if asked is None else stay_after(asked, keep_alive)
            if not is_first and not may_wait:
                return replace(self.copy(identity, load, need=need, may_wait=False), leases=int(lease))
            try:
                return self._fly(identity, load, need, may_wait, flight) if is_first else flight.wait()
            except BaseException as error:  # also Ctrl-C: the lease that was asked for must not stay
                if lease:
                    self._withdraw_lease(flight)
                if is_first or not isinstance(error, DeadlineError | RequestCancelledError):
                    raise
            # The request that the load was for is over. This one goes on, unless it is over, too.
            interruption.check()

    def copy(
        self, identity: I, load: Callable[[], LoadResult], *, need: Need | None = None, may_wait: bool = True
    ) -> CachedModel[I]:
        """Load a private copy for the caller. It counts against the limits for as long as the caller holds it.

        Args and errors are those of `get`.
        """
        ticket = object()
        with self._lock:
            self._counts.misses += 1
        try:
            own = self._load(identity, load, need or Need(), may_wait, ticket)
            own.is_present = False
            with self._lock:
                self._accounts.add_copy(own)
        finally:
            with self._lock:
                self._room.cancel(ticket)
        with self._lock:
            self._room.trim(own.device, last=own)
        return own

    def release(self, cached: CachedModel[I]) -> None:
        """Return a lease."""
        # The garbage collector may end a generator that holds a lease while this very thread holds the lock. Then the
        # lease waits for the next call.
        if self._lock._is_owned():  # type: ignore[attr-defined]
            self._returned.append(cached)
            return
        with self._lock:
            self._end_lease(cached)

    def evict(self, name: str | None = None, reason: Reason = "asked") -> int:
        """Evict the models of an entry, also pinned ones, and return how many left. None evicts all models.

        A leased model leaves when its last lease ends. A model that is being loaded goes to its callers only. The
        adapters of a model leave with it.
        """
        with self._lock:
            left = self._evict_named(name, reason)
        self._free(left)
        return len(left)

    def discard(self, identity: I, reason: Reason) -> bool:
        """Evict one model unless it is in use. Return whether it left."""
        with self._lock:
            cached = self._evict_unleased(identity, reason)
            left = [] if cached is None else [weakref.ref(cached.model)]
        del cached
        self._free(left)
        return bool(left)

    def pop(self, identity: I, reason: Reason) -> Any | None:
        """Take one model out and return it to the caller alone; None if it is not in memory, or is leased."""
        with self._lock:
            cached = self._evict_unleased(identity, reason)
            if cached is None:
                return None
            del self._accounts.held[identity]
            return cached.model

    def expire(self) -> int:
        """Evict the models whose `keep_alive` is over, and return how many left."""
        with self._lock:
            now = self._clock()
            expired = [m for m in self._accounts.models.values() if not m.leases and is_expired(m, now)]
            idle = []
            for cached in sorted(expired, key=lambda model: model.identity.base is None):  # adapters first
                if not cached.is_present or self._accounts.is_in_use(cached):
                    continue
                idle.append(cached.identity)
                idle_s = now - cached.last_used
                self._room.log.add(logging.INFO, f"evicted {cached.identity.name!r} after {idle_s:.0f} s idle")
                self._room.evict(cached, "expired")
            self._set_expiry()
            count = len(idle)
        self._room.log.flush()
        return count

    def plan(self, identity: I, need: Need) -> Plan:
        """Return what a load would take and which models would leave for it. Nothing changes."""
        with self._lock:
            plan = self._room.plan(identity, need)
            if identity in self._accounts.models or identity in self._accounts.held:
                return replace(plan, fit="loaded", leaving=(), load_s=0.0)
            return plan

    def free_bytes(self, device: str) -> int | None:
        """Return the bytes of a device's budget that nothing uses now; None without a budget."""
        with self._lock:
            budget = self._limits.budget(device)
            return None if budget is None else max(budget - self._accounts.used_bytes(device), 0)

    def statistics(self) -> Statistics:
        """Return the counts so far, and the bytes in use by device."""
        with self._lock:
            devices = {
                device: self._accounts.device_use(device, self._limits.budget(device))
                for device in self._accounts.devices()
            }
            return self._counts.freeze(
                waiting=self._room.waiting,
                devices=devices,
                reloads_per_minute=self._room.reloads.per_minute(self._clock()),
            )

    def models(self) -> list[tuple[CachedModel[I], bool]]:
        """Return the models in memory, each with whether only callers hold it: an evicted model, or a private copy."""
        with self._lock:
            self._end_returned_leases()
            self._accounts.forget_freed()
            inside = [(cached, False) for cached in self._accounts.models.values()]
            return inside + [(cached, True) for cached in self._accounts.held_by_callers()]

    def models_to_list(self) -> list[tuple[CachedModel[I], bool]]:
        """Return the same for the list of processes, and remember which models it shows as leased."""
        with self._lock:
            found = self.models()
            for cached, _ in found:
                lingers = cached.is_listed_as_leased and self.idle_s(cached) < _LINGER_S
                cached.is_listed_as_leased = cached.leases > 0 or lingers
            return found

    def hits(self, cached: CachedModel[I]) -> int:
        """Return how often a model was found in memory."""
        with self._lock:
            return cached.hits.value()

    def idle_s(self, cached: CachedModel[I]) -> float:
        """Return how many seconds ago a model was used last."""
        return self._clock() - cached.last_used

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return any(identity.name == name for identity in self._accounts.models)

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(dict.fromkeys(identity.name for identity in self._accounts.models)))

    def __len__(self) -> int:
        with self._lock:
            return len(self._accounts.models)

    def _fly(
        self,
        identity: I,
        load: Callable[[], LoadResult],
        need: Need,
        may_wait: bool,
        flight: Flight[CachedModel[I]],
    ) -> CachedModel[I]:
        """Run a load that other callers may have joined, and put its model into the cache."""

        def run() -> CachedModel[I]:
            return self._load(identity, load, need, may_wait, flight)

        def publish(cached: CachedModel[I]) -> None:
            with self._lock:
                self._end_flight(identity, flight)
                flight.value = cached
                cached.leases, cached.is_leaving = flight.waiting, flight.is_leaving
                cached.is_listed_as_leased = cached.leases > 0
                cached.keep_alive = stay_after(need.keep_alive, flight.keep_alive)
                self._accounts.models[identity] = cached
                self._room.cancel(flight)  # the model itself counts now
                self._limits.on_change()
                self._settle(cached)
                # It may be larger than expected. Its caller has it, so it leaves last.
                self._room.trim(cached.device, last=cached)

        def fail() -> None:
            with self._lock:
                self._end_flight(identity, flight)
                self._room.cancel(flight)

        return flight.run(run, publish, fail)

    def _load(
        self, identity: I, load: Callable[[], LoadResult], need: Need, may_wait: bool, ticket: object
    ) -> CachedModel[I]:
        """Reserve memory under `ticket`, load, and return the model; its bytes stay reserved."""
        is_loaded = False
        try:
            # Reserve.
            self._room.reserve(identity, need, ticket, may_wait=may_wait, before_look=self._end_returned_leases)
            # Load. Other processes use the device too: if it is full, evict what may leave and try once more.
            result: LoadResult | None = None
            try:
                result = load()
            except DeviceMemoryError:
                with self._lock:
                    if not self._room.has_evictable(need.device):
                        raise
            if result is None:  # outside the handler, whose traceback would keep the failed attempt's memory
                self._room.clear_device(need.device)
                result = load()
            # Count the load, with the size that the model really has.
            cached = CachedModel(
                identity,
                result.model,
                need.device,
                result.size_bytes,
                result.load_s,
                result.reload_s,
                result.mapped_bytes,
                loaded_at=time.time(),
                last_used=self._clock(),
            )
            with self._lock:
                is_loaded = True
                self._accounts.reserved[ticket] = replace(need, size_bytes=result.size_bytes)
                self._room.record_load(cached, result)
            self._room.log.flush()
            return cached
        except BaseException:
            with self._lock:
                self._counts.failed_loads += not is_loaded
                self._room.cancel(ticket)
            raise

    def _end_flight(self, identity: I, flight: Flight[CachedModel[I]]) -> None:
        """Remove a load that is over, unless this is a forked child and the load its parent's."""
        if self._flights.get(identity) is flight:
            del self._flights[identity]

    def _withdraw_lease(self, flight: Flight[CachedModel[I]]) -> None:
        with self._lock:
            if flight.value is None:
                flight.waiting -= 1
                return
        self.release(flight.value)

    def _use(self, identity: I, lease: bool, keep_alive: float | None, need: Need) -> CachedModel[I] | None:
        """Count a use of a model that is in memory, and return it; None if it is not."""
        cached = self._accounts.models.get(identity)
        is_back = cached is None
        cached = cached or self._accounts.restore(identity)
        if cached is None:
            return None
        cached.hits.add()
        cached.last_used = self._clock()
        cached.is_leaving = False
        self._counts.hits.add()
        if is_back:
            self._limits.on_change()
            cached.keep_alive = need.keep_alive
        cached.keep_alive = stay_after(cached.keep_alive, keep_alive)
        cached.leases += lease
        if lease and not cached.is_listed_as_leased:
            self._list_as_leased(cached)
        if is_back or keep_alive is not None:
            self._settle(cached)
        if is_back:
            self._room.trim(cached.device, last=cached)
        return cached

    def _list_as_leased(self, cached: CachedModel[I]) -> None:
        cached.is_listed_as_leased = True
        self._limits.on_change()

    def _end_returned_leases(self) -> None:
        while self._returned:
            self._end_lease(self._returned.popleft())

    def _end_lease(self, cached: CachedModel[I]) -> None:
        cached.leases -= 1
        cached.last_used = self._clock()
        if cached.is_present and (cached.keep_alive is not None or cached.is_leaving):
            self._settle(cached)
        if self._room.waiting:
            self._room.notify_waiting()

    def _settle(self, cached: CachedModel[I]) -> None:
        """Evict a model that was to leave with its last lease, or set the timer for when it expires."""
        if not self._room.settle(cached) and cached.keep_alive is not None:
            self._expiry.set_by(cached.last_used + cached.keep_alive, self._clock())

    def _set_expiry(self) -> None:
        idle = [model for model in self._accounts.models.values() if not self._accounts.is_in_use(model)]
        self._expiry.set(idle, self._clock())

    def _evict_named(self, name: str | None, reason: Reason) -> list["weakref.ref[Any]"]:
        """Do what `evict` does under the lock, and return the models that left."""

        def is_chosen(identity: Named) -> bool:
            return name is None or identity.name == name or (identity.base is not None and is_chosen(identity.base))

        for identity, flight in self._flights.items():
            flight.is_leaving |= is_chosen(identity)
        chosen = [model for model in self._accounts.models.values() if is_chosen(model.identity)]
        for cached in chosen:
            cached.is_leaving = True
        for cached in sorted(chosen, key=lambda model: model.identity.base is None):  # adapters first
            if cached.is_present and not self._accounts.is_in_use(cached):
                self._room.evict(cached, reason)
        self._set_expiry()
        return [weakref.ref(cached.model) for cached in chosen if not cached.is_present]

    def _free(self, left: list["weakref.ref[Any]"]) -> None:
        """Give the memory of models that have left back to their devices. The caller must not hold the lock."""
        if left:
            self._limits.free_memory(left)

    def _evict_unleased(self, identity: I, reason: Reason) -> CachedModel[I] | None:
        cached = self._accounts.models.get(identity)
        if cached is None or self._accounts.is_in_use(cached):
            return None
        self._room.evict(cached, reason)
        return cached

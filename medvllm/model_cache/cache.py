"""The models in memory: found in a microsecond, loaded once, kept while they are leased, and within a budget."""

import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol

from medvllm.errors import BudgetError, DeviceMemoryError, LoadError, SettingError
from medvllm.forking import Forked, register
from medvllm.model_cache.accounts import Accounts, CachedModel, I
from medvllm.model_cache.flight import Flight
from medvllm.model_cache.plan import Fit, Leaving, Need, Plan
from medvllm.model_cache.policy import is_expired, order, why
from medvllm.model_cache.refusal import refusal
from medvllm.model_cache.statistics import Counts, Reason, Statistics
from medvllm.model_cache.thrash import Reloads
from medvllm.quantities import PINNED

logger = logging.getLogger(__name__)

_POLL_S = 0.05  # between two looks for room: a caller that drops a model tells nobody
_LINGER_S = 2.0  # after its last lease a model is noted as leased for so long: servers lease one for each request
_FORK_S = 1.0  # that a fork waits for a thread to leave the books in order


class LoadResult(Protocol):
    """What a load function returns. `how` the model came to be, and why the next load cannot be a replay, if so."""

    @property
    def model(self) -> Any: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def load_s(self) -> float: ...
    @property
    def reload_s(self) -> float: ...
    @property
    def mapped_bytes(self) -> int: ...
    @property
    def how(self) -> str: ...
    @property
    def no_recipe(self) -> str | None: ...


@dataclass(frozen=True)
class Limits:
    """What bounds a cache, read when it is used. `reclaim` gives freed memory back to a device.

    `changed` is told, often under the cache's lock, that a model has come or gone, or is leased and not noted so.
    """

    budget: Callable[[str], int | None] = lambda device: None  # device -> bytes; None: no limit
    max_models: Callable[[], int | None] = lambda: None
    wait_s: Callable[[], float] = lambda: 0.0  # for room that callers may give back
    reclaim: Callable[[str], None] = lambda device: None
    changed: Callable[[], None] = lambda: None


class ModelCache(Forked, Generic[I]):
    """The models in memory by identity; ``name in cache`` and iteration go by name.

    The lock is held for look-ups only, never during a load. Room is made before a load begins: never over budget except
    by what callers hold. A model that was evicted but that a caller still holds keeps counting, is remembered weakly,
    and asked for again it comes back without a load.
    """

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or Limits()
        self._clock = clock
        self._new_locks()
        self._queue: deque[tuple[object, str]] = deque()  # loads that wait for room on a device, in order
        self._flights: dict[I, Flight[CachedModel[I]]] = {}
        self._accounts: Accounts[I] = Accounts()
        self._counts = Counts()
        self._reloads = Reloads()
        self._alarm: threading.Timer | None = None
        self._returned: deque[CachedModel[I]] = deque()  # leases that ended while this thread held the lock
        self._unsaid: deque[tuple[int, str]] = deque()  # for the log, once the lock is free
        register(self)

    def _new_locks(self) -> None:
        # Guards everything else. Reentrant only so that a lease can tell that it ends inside: see `release`.
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)  # told when bytes may have become free

    def before_fork(self) -> None:
        """Take the lock, so that a child finds the books in order."""
        self._rests = self._lock.acquire(timeout=_FORK_S)

    def after_fork(self, *, is_child: bool) -> None:
        """Let go of the lock. A child has a lock of its own, and no loads under way: their threads are not in it."""
        if not is_child:
            if self._rests:
                self._lock.release()
            return
        self._new_locks()
        self._queue.clear()
        self._unsaid.clear()
        self._flights, self._accounts.reserved = {}, {}
        for cached in self._accounts.models.values():
            cached.is_noted = False
        if self._alarm is not None:
            self._set_alarm()

    def hit(self, cached: CachedModel[I], *, lease: bool = False) -> bool:
        """Count a use of a model that the caller found before; False when it has left since."""
        now = self._clock()
        # No call inside: a thread that is switched out while it holds the lock makes all others queue.
        with self._lock:
            if not cached.present:
                return False
            cached.hits += 1
            cached.last_used = now
            cached.leases += lease
            cached.leaving = False
            self._counts.hits += 1
        if lease and not cached.is_noted:
            self._tell(cached)
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
        """Return the cached model of `identity`; callers that come during a load share it.

        With `lease`, the model is leased before any other thread can evict it; give it back with `release`.
        `keep_alive` is how long it stays after its last use, from now on; None leaves that as it is. A caller that is
        itself inside a load must not wait for another one (each could wait for the other): with ``may_wait=False`` it
        gets a copy of its own instead. BudgetError: there is no room, and waiting gave none.
        """
        need = need or Need()
        with self._lock:
            self._settle_returned()
            cached = self._use(identity, lease, keep_alive, need)
            if cached is not None:
                return cached
            flight = self._flights.get(identity)
            if first := flight is None:
                flight = self._flights[identity] = Flight()
                self._counts.misses += 1
            elif flight.is_own:
                raise LoadError(f"Loading {identity.name!r} asks for itself, so it would wait for ever.")
            if first or may_wait:
                self._counts.shared_waits += not first
                flight.waiting += lease
                flight.leaving = False
                flight.keep_alive = flight.keep_alive if keep_alive is None else keep_alive
        if not first and not may_wait:
            return replace(self.copy(identity, load, need=need, may_wait=False), leases=int(lease))

        def make() -> CachedModel[I]:
            return self._load(identity, load, need, may_wait, flight)

        def landed(cached: CachedModel[I]) -> None:
            with self._lock:
                self._flown(identity, flight)
                flight.value = cached
                cached.leases, cached.leaving = flight.waiting, flight.leaving
                cached.is_noted = cached.leases > 0
                cached.keep_alive = need.keep_alive if flight.keep_alive is None else flight.keep_alive
                self._accounts.models[identity] = cached
                self._accounts.reserved.pop(flight, None)
                self._limits.changed()
                self._settle(cached)
                # It may weigh more than was expected. It is in its caller's hands, so that it goes last.
                self._trim(cached.device, last=cached)

        def failed() -> None:
            with self._lock:
                self._flown(identity, flight)
                self._accounts.reserved.pop(flight, None)
                self._room.notify_all()

        try:
            return flight.make(make, landed, failed) if first else flight.wait()
        except BaseException:  # also Ctrl-C: the lease that was asked for must not stay
            if lease:
                self._withdraw(flight)
            raise

    def copy(
        self, identity: I, load: Callable[[], LoadResult], *, need: Need | None = None, may_wait: bool = True
    ) -> CachedModel[I]:
        """Return a model that is the caller's own: it counts for as long as the caller holds it."""
        ticket = object()
        with self._lock:
            self._counts.misses += 1
        try:
            own = self._load(identity, load, need or Need(), may_wait, ticket)
            with self._lock:
                self._accounts.copies.append((weakref.ref(own.model), replace(own, model=None)))
        finally:
            with self._lock:
                self._accounts.reserved.pop(ticket, None)
        with self._lock:
            self._trim(own.device, last=own)
        return own

    def release(self, cached: CachedModel[I]) -> None:
        """Give a lease back."""
        self._returned.append(cached)
        # A generator that holds a lease may be collected while this very thread changes the books: then it waits.
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._settle_returned()

    def evict(self, name: str | None = None, reason: Reason = "asked") -> int:
        """Let the models of an entry go, all models when None; return how many left. Pinned ones go too.

        A leased model stays until its last lease ends; one that is being loaded goes to its callers alone.
        """
        with self._lock:
            for identity, flight in self._flights.items():
                flight.leaving |= name is None or identity.name == name
            chosen = [r for r in self._accounts.models.values() if name is None or r.identity.name == name]
            for cached in chosen:
                cached.leaving = True
                if not cached.leases:
                    self._drop(cached, reason)
            if self._alarm is not None:
                self._set_alarm()
            return sum(not cached.leases for cached in chosen)

    def leave(self, identity: I, reason: Reason) -> bool:
        """Let one model go, unless it is leased; return whether it went."""
        with self._lock:
            return self._drop_unleased(identity, reason) is not None

    def take(self, identity: I, reason: Reason) -> Any | None:
        """Take a model out and return it, to be the caller's own; None when it is not here, or leased."""
        with self._lock:
            cached = self._drop_unleased(identity, reason)
            if cached is None:
                return None
            del self._accounts.held[identity]
            return cached.model

    def expire(self) -> int:
        """Let the models go that have been idle for as long as they were to stay; return how many left."""
        with self._lock:
            now = self._clock()
            idle = [r for r in self._accounts.models.values() if not r.leases and is_expired(r, now)]
            for cached in idle:
                idle_s = now - cached.last_used
                self._unsaid.append((logging.INFO, f"evicted {cached.identity.name!r} after {idle_s:.0f} s idle"))
                self._drop(cached, "expired")
            self._set_alarm()
            count = len(idle)
        self._say()
        return count

    def plan(self, identity: I, need: Need) -> Plan:
        """Return what a load of `identity` would take and who would leave for it; nothing changes."""
        with self._lock:
            plan = self._plan(identity, need)
            if identity in self._accounts.models or identity in self._accounts.held:
                return replace(plan, fit="loaded", leaving=(), load_s=0.0)
            return plan

    def statistics(self) -> Statistics:
        """Return the counts so far, and the bytes by device now."""
        with self._lock:
            devices = {
                device: self._accounts.use(device, self._limits.budget(device)) for device in self._accounts.devices()
            }
            return self._counts.frozen(devices, self._reloads.per_minute(self._clock()))

    def models(self) -> list[tuple[CachedModel[I], bool]]:
        """Return the models in memory, each with whether only a caller holds it: evicted, or its own copy."""
        with self._lock:
            self._settle_returned()
            self._accounts.forget_dead()
            inside = [(cached, False) for cached in self._accounts.models.values()]
            return inside + [(cached, True) for cached in self._accounts.outside()]

    def noted(self) -> list[tuple[CachedModel[I], bool]]:
        """Return the same for the note of this process: what is leased then is known to others as leased."""
        with self._lock:
            found = self.models()
            for cached, _ in found:
                lingers = cached.is_noted and self.idle_s(cached) < _LINGER_S
                cached.is_noted = cached.leases > 0 or lingers
            return found

    def idle_s(self, cached: CachedModel[I]) -> float:
        """Return how long ago a model was used last."""
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

    def _load(
        self, identity: I, load: Callable[[], LoadResult], need: Need, may_wait: bool, ticket: object
    ) -> CachedModel[I]:
        """Return a model that was loaded into room of its own; its bytes are then reserved under `ticket`."""
        is_loaded = False
        try:
            self._make_room(identity, need, ticket, may_wait)
            loaded: LoadResult | None = None
            try:
                loaded = load()
            except DeviceMemoryError:
                if not self._may_leave(need.device):
                    raise
            if loaded is None:  # outside of the handler: it would keep what the failed attempt has on the device
                self._clear(need.device)
                loaded = load()
            now = self._clock()
            weight = loaded.size_bytes, loaded.load_s, loaded.reload_s, loaded.mapped_bytes
            cached = CachedModel(identity, loaded.model, need.device, *weight, loaded_at=time.time(), last_used=now)
            with self._lock:
                is_loaded = True
                self._counts.loads += 1
                self._counts.load_s += loaded.load_s
                self._counts.loaded_by[loaded.how] += 1
                if loaded.no_recipe is not None:
                    self._counts.no_recipe[loaded.no_recipe] += 1
                self._accounts.reserved[ticket] = replace(need, size_bytes=loaded.size_bytes)
                used = self._accounts.used(need.device)
                is_reload, warning = self._reloads.loaded(identity, identity.name, need.device, used, now)
                self._counts.reloads += is_reload
                if warning:
                    self._unsaid.append((logging.WARNING, warning))
            self._say()
            return cached
        except BaseException:
            with self._lock:
                self._counts.failed_loads += not is_loaded
                self._accounts.reserved.pop(ticket, None)
                self._room.notify_all()
            raise

    def _make_room(self, identity: I, need: Need, ticket: object, may_wait: bool) -> None:
        """Reserve the bytes of a load under `ticket`, once others have left for it; loads that wait take turns.

        Who may not wait does not queue: it takes the room that there is.
        """
        deadline = time.monotonic() + (self._limits.wait_s() if may_wait else 0.0)
        place = ticket, need.device
        try:
            with self._lock:
                if may_wait:
                    self._queue.append(place)
            while True:
                gone: list[weakref.ref[Any]] = []
                with self._lock:
                    self._settle_returned()
                    if not may_wait or next(turn for turn in self._queue if turn[1] == need.device) == place:
                        if (plan := self._plan(identity, need)).fit == "never":
                            raise self._refusal(plan, need)
                        gone = self._evict_for(need)
                        if not self._lacks(need):
                            self._accounts.reserved[ticket] = need
                            return
                # What has left but is not free yet may be waiting for the collector.
                if gone:
                    self._limits.reclaim(need.device)
                    if any(model() is None for model in gone):
                        continue
                with self._lock:
                    if (left_s := deadline - time.monotonic()) <= 0:
                        raise self._refusal(self._plan(identity, need), need)
                    self._room.wait(min(left_s, _POLL_S))
        finally:
            with self._lock:
                if place in self._queue:
                    self._queue.remove(place)
                self._room.notify_all()
            self._say()

    def _lacks(self, need: Need) -> bool:
        """Return whether a load has no room as things are."""
        limit = self._limits.budget(need.device)
        return self._is_crowded() or (limit is not None and self._accounts.used(need.device) + need.size_bytes > limit)

    def _is_crowded(self) -> bool:
        most = self._limits.max_models()
        return most is not None and len(self._accounts.models) + len(self._accounts.reserved) >= most

    def _evict_for(self, need: Need) -> list["weakref.ref[Any]"]:
        """Let models leave, one after the other, until a load has room; return those that are not free yet."""
        gone: list[weakref.ref[Any]] = []
        leaving = order(self._accounts.models.values(), self._clock())[::-1]
        while leaving and self._lacks(need):
            cached = leaving.pop()
            crowded = self._is_crowded()
            if crowded or cached.device == need.device:
                now = self._clock()
                reason = f"evicted {cached.identity.name!r} to make room: {why(cached, now)}"
                self._unsaid.append((logging.INFO, reason))
                self._reloads.left(cached.identity, cached.device, cached.size_bytes, now)
                gone.append(weakref.ref(cached.model))
                self._drop(cached, "count" if crowded else "room")
            del cached  # else its model would stay for as long as this variable
        return [model for model in gone if model() is not None]

    def _may_leave(self, device: str) -> bool:
        """Return whether any model may leave a device."""
        with self._lock:
            return any(r.device == device for r in order(self._accounts.models.values(), self._clock()))

    def _clear(self, device: str) -> None:
        """Let all go that may leave a device that is out of memory."""
        with self._lock:
            leaving = [r for r in order(self._accounts.models.values(), self._clock()) if r.device == device]
            count = len(leaving)
            while leaving:
                self._drop(leaving.pop(), "memory")
        logger.warning("%s is out of memory: %d models left, and the load is tried once more", device, count)
        self._limits.reclaim(device)

    def _trim(self, device: str, last: CachedModel[I]) -> None:
        """Let models leave until all is within its limits, `last` after all others."""
        try:
            limit, most = self._limits.budget(device), self._limits.max_models()
        except SettingError:  # changed to a wrong one meanwhile: the next load says so
            return
        leaving = order(self._accounts.models.values(), self._clock())
        leaving.sort(key=lambda cached: cached is last)
        leaving.reverse()
        while leaving:
            crowded = most is not None and len(self._accounts.models) > most
            heavy = limit is not None and self._accounts.used(device) > limit
            if not crowded and not heavy:
                return
            cached = leaving.pop()
            if crowded or cached.device == device:
                self._drop(cached, "count" if crowded else "room")
            del cached

    def _plan(self, identity: I, need: Need) -> Plan:
        now, limit, most = self._clock(), self._limits.budget(need.device), self._limits.max_models()
        used, models = self._accounts.used(need.device), self._accounts.models.values()
        over = used + need.size_bytes - limit if limit is not None else 0
        surplus = len(models) + len(self._accounts.reserved) + 1 - most if most is not None else 0
        leaving: list[Leaving] = []
        for cached in order(models, now):
            if over <= 0 and surplus <= 0:
                break
            if surplus > 0 or cached.device == need.device:
                surplus -= 1
                over -= cached.size_bytes if cached.device == need.device else 0
                leaving.append(Leaving(cached.identity.name, cached.size_bytes, why(cached, now)))
        pinned = [cached for cached in models if cached.keep_alive == PINNED]
        fixed = sum(cached.size_bytes for cached in pinned if cached.device == need.device)
        fit: Fit = "after eviction" if leaving else "now"
        if over > 0 or surplus > 0:
            never = (limit is not None and fixed + need.size_bytes > limit) or (
                most is not None and len(pinned) >= most
            )
            fit = "never" if never else "later"
        return Plan(
            identity.name,
            need.device,
            fit,
            need.size_bytes,
            need.known_by,
            used,
            limit,
            tuple(leaving),
            need.load_s,
        )

    def _refusal(self, plan: Plan, need: Need) -> BudgetError:
        models = self._accounts.models.values()
        pinned = [r for r in models if r.keep_alive == PINNED and r.device == plan.device]
        return refusal(plan, need, {r.identity.name: r.size_bytes for r in pinned}, self._limits.max_models())

    def _tell(self, cached: CachedModel[I]) -> None:
        cached.is_noted = True
        self._limits.changed()

    def _flown(self, identity: I, flight: Flight[CachedModel[I]]) -> None:
        """Take out a load that is over, unless a fork has left it to its parent."""
        if self._flights.get(identity) is flight:
            del self._flights[identity]

    def _withdraw(self, flight: Flight[CachedModel[I]]) -> None:
        with self._lock:
            if flight.value is None:
                flight.waiting -= 1
                return
        self.release(flight.value)

    def _use(self, identity: I, lease: bool, keep_alive: float | None, need: Need) -> CachedModel[I] | None:
        cached = self._accounts.models.get(identity)
        is_back = cached is None
        cached = cached or self._take_back(identity)
        if cached is None:
            return None
        cached.hits += 1
        cached.last_used = self._clock()
        cached.leaving = False
        self._counts.hits += 1
        if is_back:
            cached.keep_alive = need.keep_alive
        if keep_alive is not None:
            cached.keep_alive = keep_alive
        cached.leases += lease
        if lease and not cached.is_noted:
            self._tell(cached)
        if is_back or keep_alive is not None:
            self._settle(cached)
        if is_back:
            self._trim(cached.device, last=cached)
        return cached

    def _take_back(self, identity: I) -> CachedModel[I] | None:
        reference, cached = self._accounts.held.pop(identity, (None, None))
        model = reference() if reference is not None else None
        if model is None or cached is None:
            return None
        cached.model, cached.present = model, True
        self._accounts.models[identity] = cached
        self._limits.changed()
        return cached

    def _settle_returned(self) -> None:
        """Take account of the leases that have ended."""
        while self._returned:
            cached = self._returned.popleft()
            cached.leases -= 1
            cached.last_used = self._clock()
            if self._accounts.models.get(cached.identity) is cached:
                self._settle(cached)
            self._room.notify_all()

    def _settle(self, cached: CachedModel[I]) -> None:
        """Let a model go that was to leave with its last lease; see to it that another leaves when its time comes."""
        if not cached.leases and (cached.leaving or cached.keep_alive == 0):
            self._drop(cached, "asked" if cached.leaving else "expired")
        elif cached.keep_alive is not None:
            self._set_alarm()

    def _drop(self, cached: CachedModel[I], reason: Reason) -> None:
        del self._accounts.models[cached.identity]
        cached.present = False
        self._counts.evictions[reason] += 1
        # A copy without the model: whoever has just been handed `cached` still reads its model.
        kept = replace(cached, model=None, leaving=False, keep_alive=None)
        self._accounts.held[cached.identity] = weakref.ref(cached.model), kept
        self._limits.changed()
        self._room.notify_all()

    def _drop_unleased(self, identity: I, reason: Reason) -> CachedModel[I] | None:
        cached = self._accounts.models.get(identity)
        if cached is None or cached.leases:
            return None
        self._drop(cached, reason)
        return cached

    def _set_alarm(self) -> None:
        """Have the next model that expires leave without being asked: one timer, while one is needed."""
        cached = self._accounts.models.values()
        times = [r.last_used + r.keep_alive for r in cached if r.keep_alive not in (None, PINNED) and not r.leases]
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if times:
            # Weakly: a cache that nobody else holds goes, and its models with it.
            self._alarm = threading.Timer(max(min(times) - self._clock(), _POLL_S), _expire, [weakref.ref(self)])
            self._alarm.daemon = True
            with contextlib.suppress(RuntimeError):  # no thread can be had: they leave with the next call that looks
                self._alarm.start()

    def _say(self) -> None:
        """Log what happened under the lock: a log handler may itself ask the cache something."""
        while self._unsaid:
            with contextlib.suppress(IndexError):
                logger.log(*self._unsaid.popleft())


def _expire(cache: "weakref.ref[ModelCache[Any]]") -> None:
    if (alive := cache()) is not None:
        alive.expire()

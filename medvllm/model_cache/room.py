"""Memory for models: reserved before a load begins, and made by evicting models that are idle."""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic

from medvllm import interruption
from medvllm.errors import BudgetError, SettingError
from medvllm.load_result import LoadResult
from medvllm.model_cache.accounts import Accounts, CachedModel, I
from medvllm.model_cache.budget_error import budget_error
from medvllm.model_cache.deferred_log import DeferredLog
from medvllm.model_cache.limits import Bounds, Limits
from medvllm.model_cache.plan import Fit, Leaving, Need, Plan
from medvllm.model_cache.policy import describe_idle, eviction_order
from medvllm.model_cache.reloads import Reloads
from medvllm.model_cache.statistics import Counts, Reason

logger = logging.getLogger(__name__)

_POLL_S = 0.05  # between two looks for memory: a caller that drops a model does not tell the cache


class Room(Generic[I]):
    """The memory that cached models and loads in progress may use.

    `lock` guards it, and the rest of the cache. Methods need the lock unless they say otherwise.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits, self._clock = limits, clock
        self.accounts: Accounts[I] = Accounts()
        self.reloads = Reloads()
        self.counts = Counts()
        self.log = DeferredLog(logger)
        self._queue: deque[tuple[object, str]] = deque()  # the loads that wait for memory of a device, in order
        self._new_lock()

    def _new_lock(self) -> None:
        # Reentrant only so that `ModelCache.release` can tell that its own thread holds the lock.
        self.lock = threading.RLock()
        self._freed = threading.Condition(self.lock)  # notified when bytes may have become free

    def reset_after_fork(self) -> None:
        """Begin anew in a child: with a free lock, and without the loads of its parent's threads."""
        self._new_lock()
        self._queue.clear()
        self.log.clear()
        self.accounts.reserved = {}

    @property
    def waiting(self) -> int:
        """How many loads wait for memory."""
        return len(self._queue)

    def plan(self, identity: I, need: Need) -> Plan:
        """Return what a load would take and which models would leave for it; nothing changes."""
        return self._plan(identity, need, self.limits.bounds(need.device))

    def reserve(
        self, identity: I, need: Need, ticket: object, *, may_wait: bool, before_look: Callable[[], None]
    ) -> None:
        """Reserve the bytes of a load under `ticket`, evicting models for it. The caller must not hold the lock.

        Loads that wait take turns, first come, first served on each device. A load whose time is up looks once more,
        whoever is before it: those have waited as long, so they are about to leave the queue.

        Args:
            identity: The model to load.
            need: What the load is expected to take.
            ticket: The key of the reservation, for `cancel`.
            may_wait: Whether the load may queue and wait. If not, it takes the memory that is free or can be freed now.
            before_look: Called under the lock before each look for memory.

        Raises:
            BudgetError: There is not enough memory, and waiting did not help.
            MedVLLMError: The request that the load is for is over.
        """
        deadline = time.monotonic() + (self.limits.wait_s() if may_wait else 0.0)
        place = ticket, need.device
        try:
            with self.lock:
                if may_wait:
                    self._queue.append(place)
            while True:
                evicted: list[weakref.ref[Any]] = []
                error: BudgetError | None = None
                with self.lock:
                    before_look()
                    left_s = deadline - time.monotonic()
                    # The last look needs no turn: a load that only passes through the queue must not refuse another.
                    if left_s <= 0 or next(turn for turn in self._queue if turn[1] == need.device) == place:
                        bounds = self.limits.bounds(need.device)
                        if (plan := self._plan(identity, need, bounds)).fit == "never":
                            raise self._budget_error(plan, need, bounds)
                        evicted = self._evict_for(need, bounds)
                        if self._excess(need, bounds) is None:
                            self.accounts.reserved[ticket] = need
                            return
                        if left_s <= 0:
                            error = self._budget_error(self._plan(identity, need, bounds), need, bounds)
                # An evicted model may stay in memory until the garbage collector runs.
                if evicted:
                    self.limits.free_memory(evicted)
                    if any(model() is None for model in evicted):
                        continue
                if error is not None:
                    raise error
                interruption.check()
                with self.lock:
                    self._freed.wait(min(left_s, _POLL_S))
        finally:
            with self.lock:
                if place in self._queue:
                    self._queue.remove(place)
                self._freed.notify_all()
            self.log.flush()

    def cancel(self, ticket: object) -> None:
        """Give a reservation back."""
        self.accounts.reserved.pop(ticket, None)
        self._freed.notify_all()

    def evict(self, cached: CachedModel[I], reason: Reason) -> None:
        """Take a model out of the cache. A base that was to leave does so with its last adapter."""
        base = self.accounts.base_of(cached)
        self.accounts.remove(cached)
        self.counts.evictions[reason] += 1
        self.limits.on_change()
        self._freed.notify_all()
        if base is not None:
            self.settle(base)

    def settle(self, cached: CachedModel[I]) -> bool:
        """Evict a model that was to leave with its last lease. Return whether it left."""
        if not (cached.is_leaving or cached.keep_alive == 0) or self.accounts.is_in_use(cached):
            return False
        self.evict(cached, "asked" if cached.is_leaving else "expired")
        return True

    def record_load(self, cached: CachedModel[I], result: LoadResult) -> None:
        """Count a load, and warn when its entry keeps coming back after evictions."""
        self.counts.add_load(result)
        used = self.accounts.used_bytes(cached.device)
        is_reload, warning = self.reloads.record_load(
            cached.identity, cached.identity.name, cached.device, used, cached.last_used
        )
        self.counts.reloads += is_reload
        if warning:
            self.log.add(logging.WARNING, warning)

    def notify_waiting(self) -> None:
        """Wake the loads that wait for memory: a lease has ended."""
        self._freed.notify_all()

    def has_evictable(self, device: str) -> bool:
        """Return whether any model may leave a device."""
        return any(model.device == device for model in self._candidates())

    def clear_device(self, device: str) -> None:
        """Evict every model that may leave a device that ran out of memory. The caller must not hold the lock."""
        evicted: list[weakref.ref[Any]] = []
        with self.lock:
            for cached, _ in self._leaving(device, lambda: "memory"):
                evicted.append(weakref.ref(cached.model))
                self.evict(cached, "memory")
                del cached
        logger.warning("%s is out of memory: evicted %d models, and the load is tried once more", device, len(evicted))
        self.limits.free_memory(evicted)

    def trim(self, device: str, last: CachedModel[I]) -> None:
        """Evict models until the cache is within its limits again, `last` after all others."""
        try:
            bounds = self.limits.bounds(device)
        except SettingError:  # it became invalid during a load: the next load reports it
            return

        def excess() -> Reason | None:
            if bounds.max_models is not None and self.accounts.count_models() > bounds.max_models:
                return "count"
            is_over = bounds.budget_bytes is not None and self.accounts.used_bytes(device) > bounds.budget_bytes
            return "room" if is_over else None

        for cached, reason in self._leaving(device, excess, last=last):
            self.evict(cached, reason)
            del cached  # or the loop's variable would keep it in memory

    def _evict_for(self, need: Need, bounds: Bounds) -> list["weakref.ref[Any]"]:
        """Evict models, one at a time, until a load fits; return those that are still in memory."""
        evicted: list[weakref.ref[Any]] = []
        for cached, reason in self._leaving(need.device, lambda: self._excess(need, bounds)):
            now = self._clock()
            self.log.add(logging.INFO, f"evicted {cached.identity.name!r} to make room: {describe_idle(cached, now)}")
            self.reloads.record_eviction(cached.identity, cached.device, cached.size_bytes, now)
            evicted.append(weakref.ref(cached.model))
            self.evict(cached, reason)
            del cached  # or the loop's variable would keep it in memory
        return [model for model in evicted if model() is not None]

    def _excess(self, need: Need, bounds: Bounds) -> Reason | None:
        """Return which limit a load would exceed now: "count" or "room"; None when it fits."""
        if bounds.max_models is not None and need.base is None and self._count_models() >= bounds.max_models:
            return "count"
        is_over = (
            bounds.budget_bytes is not None
            and self.accounts.used_bytes(need.device) + need.size_bytes > bounds.budget_bytes
        )
        return "room" if is_over else None

    def _count_models(self) -> int:
        """Return how many models there are, with those that are being loaded."""
        return self.accounts.count_models() + sum(need.base is None for need in self.accounts.reserved.values())

    def _leaving(
        self,
        device: str,
        excess: Callable[[], Reason | None],
        last: CachedModel[I] | None = None,
        kept: Hashable | None = None,
    ) -> Iterator[tuple[CachedModel[I], Reason]]:
        """Yield the models to evict, with the reason, for as long as `excess` returns one. `kept` stays.

        A base follows its adapters. For "count" any model may leave; for other reasons, only models on `device`. No
        variable here holds a yielded model, so that it is freed as soon as the caller drops it.
        """
        candidates = [model for model in self._candidates() if model.identity != kept]
        candidates.sort(key=lambda model: model is last)
        candidates = self._bases_last(candidates)
        candidates.reverse()
        while candidates and (reason := excess()) is not None:
            if reason == "count" or candidates[-1].device == device:
                yield candidates.pop(), reason
            else:
                candidates.pop()

    def _candidates(self) -> list[CachedModel[I]]:
        """Return the models that may leave. The base of an adapter that must stay is none of them."""
        found = eviction_order(self.accounts.models.values(), self._clock())
        free = {model.identity for model in found}
        return [model for model in found if all(each.identity in free for each in self.accounts.adapters_of(model))]

    def _bases_last(self, models: list[CachedModel[I]]) -> list[CachedModel[I]]:
        """Return models in the same order, but each base behind the last of its adapters."""
        places = {model.identity: place for place, model in enumerate(models)}

        def place(model: CachedModel[I]) -> tuple[int, bool]:
            adapters = [places[each.identity] for each in self.accounts.adapters_of(model)]
            return max([places[model.identity], *adapters]), bool(adapters)

        return sorted(models, key=place)

    def _plan(self, identity: I, need: Need, bounds: Bounds) -> Plan:
        now, used = self._clock(), self.accounts.used_bytes(need.device)
        limit, most = bounds.budget_bytes, bounds.max_models
        over = used + need.size_bytes - limit if limit is not None else 0
        # As `_excess`: an adapter takes no place among the models.
        surplus = self._count_models() + 1 - most if most is not None and need.base is None else 0

        def excess() -> Reason | None:
            return "count" if surplus > 0 else "room" if over > 0 else None

        leaving: list[Leaving] = []
        for cached, _ in self._leaving(need.device, excess, kept=need.base):
            surplus -= cached.identity.base is None
            over -= cached.size_bytes if cached.device == need.device else 0
            leaving.append(Leaving(cached.identity.name, cached.size_bytes, describe_idle(cached, now)))
        fit: Fit = "after eviction" if leaving else "now"
        if excess() is not None:
            pinned = self.accounts.pinned()
            pinned_bytes = sum(model.size_bytes for model in pinned if model.device == need.device)
            is_never = (limit is not None and pinned_bytes + need.size_bytes > limit) or (
                most is not None and sum(model.identity.base is None for model in pinned) >= most
            )
            fit = "never" if is_never else "later"
        about = need.size_bytes, need.known_by, used, limit, tuple(leaving), need.load_s
        return Plan(identity.name, need.device, fit, *about, dtype=need.dtype, stored_dtype=need.stored_dtype)

    def _budget_error(self, plan: Plan, need: Need, bounds: Bounds) -> BudgetError:
        pinned = [model for model in self.accounts.pinned() if model.device == plan.device]
        return budget_error(plan, need, {model.identity.name: model.size_bytes for model in pinned}, bounds.max_models)

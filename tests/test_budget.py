"""Models within a budget: which one leaves, who waits, what is refused, and what the plan says before."""

import gc
import logging
import math
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from medvllm.errors import BudgetError, DeviceMemoryError, SettingError, SourceError
from medvllm.load_result import LoadResult
from medvllm.model_cache import CachedModel, Limits, ModelCache, Need, Plan
from medvllm.quantities import parse_budget, parse_duration


@dataclass(frozen=True)
class Key:
    name: str
    base: "Key | None" = None


class Thing:
    """Something that weak references can point to."""

    itself: "Thing | None" = None


def _loaded(size_bytes: int, reload_s: float = 1.0) -> LoadResult:
    """What a load of some bytes returns."""
    return LoadResult(Thing(), size_bytes, 1.0, "transformers", mapped_bytes=0, reload_s=reload_s)


class Clock:
    """Cranked by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A cache with limits that a test may change, and a clock that it cranks."""

    budget: dict[str, int | None] = field(default_factory=dict)
    max_models: int | None = None
    wait_s: float = 0.0
    clock: Clock = field(default_factory=Clock)
    reclaimed: int = 0
    budget_error: Exception | None = None

    def __post_init__(self) -> None:
        limits = Limits(self._budget, lambda: self.max_models, lambda: self.wait_s, self._reclaim)
        self.cache: ModelCache[Key] = ModelCache(limits, self.clock)

    def _budget(self, device: str) -> int | None:
        if self.budget_error is not None:
            raise self.budget_error
        return self.budget.get(device)

    def _reclaim(self, evicted: Sequence["weakref.ref[Any]"]) -> None:
        self.reclaimed += 1
        gc.collect()

    def load(
        self, name: str, size: int = 10, *, real: int | None = None, device: str = "cpu", **how: Any
    ) -> CachedModel[Key]:
        """Load, or find, a thing of some bytes; `real` is what it turns out to weigh."""
        reload_s, keep = how.pop("reload_s", 1.0), how.pop("default_keep_alive", None)
        need = Need(device, size, "headers", None, keep)
        self.clock.now += 1
        return self.cache.get(Key(name), lambda: _loaded(size if real is None else real, reload_s), need=need, **how)

    @property
    def names(self) -> set[str]:
        return set(self.cache)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(params=["bytes", "count", "both", "none"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """A cache for three things, by each kind of limit; or without one."""
    return Bench(
        {"cpu": 30} if request.param in ("bytes", "both") else {}, 3 if request.param in ("count", "both") else None
    )


def test_every_policy_keeps_to_its_limit_and_gives_what_was_asked(bench: Bench) -> None:
    """The contract: the right thing, once while it stays, the least recently used leaves, leased ones never."""
    limited = bool(bench.budget) or bench.max_models is not None
    first = bench.load("a", lease=True)
    for name in "bcdbe":
        bench.load(name)
    assert first.is_present and bench.load("a").model is first.model
    assert bench.names == ({"a", "b", "e"} if limited else set("abcde"))
    assert bench.cache.statistics().loads == (6 if limited else 5)
    bench.cache.release(first)
    for name in "cd":
        bench.load(name)
    assert bench.names == ({"c", "d", "a"} if limited else set("abcde"))
    assert bench.cache.evict() == (3 if limited else 5) and bench.names == set()


def test_every_policy_adds_up(bench: Bench) -> None:
    """Requests are hits, misses and shared waits; loads and failures are the misses; evictions have their reasons."""
    for name in "abcdabcd":
        bench.load(name)

    def fail() -> LoadResult:
        raise SourceError("gone")

    with pytest.raises(SourceError):
        bench.cache.get(Key("x"), fail, need=Need("cpu", 10))
    figures = bench.cache.statistics()
    assert figures.hits + figures.misses == 9 and figures.misses == figures.loads + figures.failed_loads
    assert figures.loads - sum(figures.evictions.values()) == len(bench.cache)
    assert figures.devices["cpu"].cached_bytes == 10 * len(bench.cache) and figures.devices["cpu"].reserved_bytes == 0
    assert figures.loaded_by == {"transformers": figures.loads}


def test_expired_ones_leave_first_then_the_longest_idle_for_what_a_reload_costs() -> None:
    """A model that takes long to load stays longer than one that is back in a moment."""
    bench = Bench({"cpu": 40})
    bench.load("slow", reload_s=100)
    bench.load("quick", reload_s=0.01)
    bench.load("recent", reload_s=0.01)
    bench.load("expired", reload_s=100, keep_alive=5)
    bench.clock.now += 20
    for name, left in (("1", "expired"), ("2", "quick"), ("3", "recent")):
        bench.load(name, reload_s=1000)
        assert left not in bench.names
    assert "slow" in bench.names


def test_pinned_ones_never_leave_for_room() -> None:
    """What would need their room can never fit, and is refused at once; asked to leave, they go."""
    bench = Bench({"cpu": 30}, wait_s=60)
    bench.load("pinned", 20, keep_alive=math.inf)
    for name in "abc":
        bench.load(name)
    assert bench.names == {"pinned", "c"}
    with pytest.raises(BudgetError, match=r"'large' on cpu: it needs 11 B \(headers\); the budget is 30 B"):
        bench.load("large", 11)
    assert bench.cache.evict("pinned") == 1
    assert bench.load("large", 11)


def test_what_can_never_fit_is_refused_at_once_with_its_plan() -> None:
    """Nothing is evicted for it, and the error keeps the plan through pickle."""
    bench = Bench({"cpu": 30}, wait_s=60)
    bench.load("a")
    with pytest.raises(BudgetError) as caught:
        bench.load("huge", 31)
    plan = pickle.loads(pickle.dumps(caught.value)).plan
    assert isinstance(plan, Plan) and (plan.fit, plan.size_bytes, plan.budget_bytes) == ("never", 31, 30)
    assert bench.names == {"a"}


def test_what_fits_later_waits_in_order() -> None:
    """For a lease to end; whoever came first goes first, also when a later one would fit sooner."""
    bench = Bench({"cpu": 30}, wait_s=30)
    leased = bench.load("a", 30, lease=True)
    begun: list[str] = []

    def ask(name: str, size: int) -> None:
        def load() -> LoadResult:
            begun.append(name)
            return _loaded(size)

        bench.cache.get(Key(name), load, need=Need("cpu", size))

    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(ask, "large", 25)
        _until(lambda: bench.cache.statistics().waiting == 1)
        small = pool.submit(ask, "small", 5)
        _until(lambda: bench.cache.statistics().waiting == 2)
        assert bench.cache.plan(Key("large"), Need("cpu", 25)).fit == "later"
        bench.cache.release(leased)
        del leased  # it has the model
        large.result(), small.result()
    assert begun == ["large", "small"] and bench.names == {"large", "small"}


def test_waiting_is_bounded() -> None:
    """Then it is an error that says what holds the room; nothing is left behind."""
    bench = Bench({"cpu": 30}, wait_s=0.1)
    leased = bench.load("a", 30, lease=True)
    with pytest.raises(BudgetError, match="in use, which callers hold") as caught:
        bench.load("b", 5)
    assert caught.value.plan.fit == "later" and not bench.cache.statistics().waiting
    bench.cache.release(leased)
    del leased
    assert bench.load("b", 5) and bench.cache.statistics().devices["cpu"].reserved_bytes == 0


@pytest.mark.parametrize("wait_s", [0.0, 0.2])
def test_a_load_that_frees_memory_refuses_no_other(wait_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load whose time is up gets the memory that is free, whoever stands before it in the queue."""
    bench = Bench({"cpu": 40}, wait_s=30)
    begun, end = threading.Event(), threading.Event()

    def slowly(evicted: Sequence["weakref.ref[Any]"]) -> None:
        begun.set()
        end.wait()

    monkeypatch.setattr(bench, "_reclaim", slowly)
    bench.__post_init__()
    thing = bench.load("a", 30).model
    thing.itself = thing  # garbage that nobody has collected, once it is evicted
    del thing
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(bench.load, "large", 35)
        begun.wait()
        bench.wait_s = wait_s
        try:
            assert bench.load("small", 5).is_present and bench.cache.statistics().waiting == 1
        finally:
            gc.collect()
            end.set()
        assert large.result().is_present


def test_an_adapter_needs_no_place_among_the_models() -> None:
    """Also when there are more models than are allowed by now."""
    bench = Bench(max_models=2)
    for name in "ab":
        bench.load(name, keep_alive=math.inf)
    bench.max_models = 1
    assert bench.cache.plan(Key("adapter", base=Key("a")), Need("cpu", 1, "headers", base=Key("a"))).fit == "now"


def test_devices_do_not_wait_for_each_other() -> None:
    """A load that waits for one device holds up none for another."""
    bench = Bench({"cpu": 10, "cuda:0": 10}, wait_s=30)
    leased = bench.load("a", lease=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bench.load, "b")
        _until(lambda: bench.cache.statistics().waiting == 1)
        assert bench.load("c", device="cuda:0")
        bench.cache.release(leased)
        del leased
        assert waiting.result().is_present


def test_a_model_that_a_caller_holds_keeps_counting_and_comes_back_without_a_load() -> None:
    """Its memory is not free, whatever the cache has forgotten."""
    bench = Bench({"cpu": 20})
    held = bench.load("a").model
    bench.load("b")
    bench.cache.evict("a")
    use = bench.cache.statistics().devices["cpu"]
    assert (use.cached_bytes, use.held_bytes) == (10, 10)
    bench.load("c")  # b leaves for it: a cannot
    assert bench.names == {"c"}
    with pytest.raises(BudgetError):
        bench.load("large", 11)
    assert bench.load("a").model is held and bench.cache.statistics().loads == 3
    del held
    bench.load("large", 20)
    assert bench.names == {"large"}


def test_a_callers_own_copy_counts_while_it_is_held() -> None:
    """And never comes back as the shared one."""
    bench = Bench({"cpu": 20})
    own = bench.cache.copy(Key("a"), lambda: _loaded(15), need=Need("cpu", 15))
    assert bench.names == set() and bench.cache.statistics().devices["cpu"].held_bytes == 15
    with pytest.raises(BudgetError):
        bench.load("a", 15)
    del own
    assert bench.load("a", 15).is_present


def test_memory_that_only_the_collector_frees_is_waited_for() -> None:
    """A model in a cycle is not gone when its last name is."""
    bench = Bench({"cpu": 10})
    gc.disable()
    try:
        thing: Any = bench.load("a").model
        thing.itself = thing
        del thing
        assert bench.load("b").is_present and bench.reclaimed == 1
    finally:
        gc.enable()


def test_a_model_heavier_than_expected_makes_others_leave() -> None:
    """The measured figure counts; the one that was asked for goes last."""
    bench = Bench({"cpu": 30})
    bench.load("a")
    bench.load("b")
    bench.load("c", 10, real=25)
    assert bench.names == {"c"} and bench.cache.statistics().devices["cpu"].cached_bytes == 25
    own = bench.load("d", 10, real=40)
    assert bench.names == set() and not own.is_present


def test_the_devices_own_limit_evicts_and_tries_once_more() -> None:
    """Out of memory is an error only when nothing could leave, or it did not help."""
    bench = Bench()
    bench.load("a")
    leased = bench.load("b", lease=True)
    attempts: list[int] = []

    def full(times: int) -> Callable[[], LoadResult]:
        def load() -> LoadResult:
            attempts.append(1)
            if len(attempts) <= times:
                raise DeviceMemoryError("full")
            return _loaded(10)

        return load

    assert bench.cache.get(Key("c"), full(1), need=Need("cpu", 10)).is_present
    assert bench.names == {"b", "c"} and len(attempts) == 2 and bench.cache.statistics().evictions == {"memory": 1}
    attempts.clear()
    with pytest.raises(DeviceMemoryError):
        bench.cache.get(Key("d"), full(9), need=Need("cpu", 10))
    assert len(attempts) == 2
    attempts.clear()
    with pytest.raises(DeviceMemoryError):
        bench.cache.get(Key("d"), full(9), need=Need("cpu", 10))
    assert len(attempts) == 1 and leased.is_present and bench.cache.statistics().devices["cpu"].reserved_bytes == 0


def test_keep_alive() -> None:
    """Idle models leave on time; a use begins the time anew, a caller may change it, 0 ends with the last lease."""
    bench = Bench()
    bench.load("a", keep_alive=10)
    bench.load("b", default_keep_alive=100)
    bench.load("c")
    bench.clock.now += 8
    assert bench.load("a").is_present and bench.cache.expire() == 0
    bench.clock.now += 11
    assert bench.cache.expire() == 1 and bench.names == {"b", "c"}
    bench.load("c", keep_alive=math.inf)
    bench.clock.now += 1e6
    assert bench.cache.expire() == 1 and bench.names == {"c"}
    leased = bench.load("d", keep_alive=0, lease=True)
    assert bench.cache.expire() == 0 and "d" in bench.names
    bench.cache.release(leased)
    assert "d" not in bench.names
    once = bench.load("e", keep_alive=0)
    assert "e" not in bench.names and once.model is not None
    assert bench.cache.statistics().evictions == {"expired": 4}


def test_idle_models_leave_without_being_asked() -> None:
    """By a timer of their own, of which there is one at most, and none when nothing expires."""
    cache: ModelCache[Key] = ModelCache()

    def timers() -> int:
        running = (thread for thread in threading.enumerate() if isinstance(thread, threading.Timer))
        # One that was cancelled is still listed until its thread has woken to see it.
        arguments = (list(thread.args) for thread in running if not thread.finished.is_set())
        return sum(len(given) == 1 and given[0]() == cache.expire for given in arguments)

    for name in "abc":
        cache.get(Key(name), lambda: _loaded(10), keep_alive=0.2)
    assert timers() == 1
    _until(lambda: len(cache) == 0)
    _until(lambda: not timers())
    cache.get(Key("a"), lambda: _loaded(10), keep_alive=1000)
    cache.evict()
    _until(lambda: not timers())


def test_a_cache_that_nobody_holds_goes_with_its_models() -> None:
    """A timer for a model that is to leave in an hour does not keep them for an hour."""
    cache: ModelCache[Key] = ModelCache()
    thing = weakref.ref(cache.get(Key("a"), lambda: _loaded(10), keep_alive=3600).model)
    del cache
    gc.collect()
    assert thing() is None


def test_a_limit_that_turns_wrong_during_a_load_strands_nothing() -> None:
    """The load is over: its lease counts and ends as any."""
    bench = Bench({"cpu": 30})

    def load() -> LoadResult:
        bench.budget_error = SettingError("wrong")
        return _loaded(10)

    leased = bench.cache.get(Key("a"), load, need=Need("cpu", 10), lease=True)
    with pytest.raises(SettingError):
        bench.load("b")
    bench.budget_error = None
    bench.cache.release(leased)
    assert leased.leases == 0 and bench.cache.evict() == 1
    figures = bench.cache.statistics()
    assert figures.waiting == 0 and figures.misses == figures.loads + figures.failed_loads
    assert not any(use.reserved_bytes for use in figures.devices.values())


def test_a_failed_attempt_has_let_go_before_the_next() -> None:
    """What it had on the device is free when the load is tried once more."""
    bench = Bench()
    bench.load("a")
    parts: list[weakref.ref[Thing]] = []

    def load() -> LoadResult:
        if parts:
            assert parts[0]() is None
            return _loaded(10)
        half = Thing()
        parts.append(weakref.ref(half))
        raise DeviceMemoryError("full")

    assert bench.cache.get(Key("b"), load, need=Need("cpu", 10)).is_present


def test_one_that_comes_back_stays_as_its_entry_says() -> None:
    """And makes room for itself, in bytes and in number."""
    bench = Bench({}, 1)
    held = bench.load("a", default_keep_alive=math.inf).model
    bench.cache.evict("a")
    bench.load("b")
    back = bench.load("a", default_keep_alive=math.inf)
    assert back.model is held and back.keep_alive == math.inf and bench.names == {"a"}


def test_who_may_not_wait_takes_the_room_that_there_is() -> None:
    """Past those who wait for more: inside a load, waiting could be for ever."""
    bench = Bench({"cpu": 30}, wait_s=30)
    leased = bench.load("a", 20, lease=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: bench.load("large", 25).is_present)
        _until(lambda: bench.cache.statistics().waiting == 1)
        assert bench.load("part", 5, may_wait=False).is_present
        bench.cache.release(leased)
        del leased
        assert waiting.result()


def test_a_lease_that_ends_inside_the_books_ends_afterwards() -> None:
    """A generator that holds one may be collected at any moment, also while its thread changes the books."""
    leases: list[int] = []
    leased: list[CachedModel[Key]] = []

    def on_change() -> None:  # the cache calls it under its lock
        if leased:
            cache.release(held := leased.pop())
            leases.append(held.leases)

    cache: ModelCache[Key] = ModelCache(Limits(on_change=on_change))
    held = cache.get(Key("a"), lambda: _loaded(10), lease=True)
    leased.append(held)
    assert cache.get(Key("b"), lambda: _loaded(10)) and leases == [1]
    assert cache.models() and held.leases == 0


def test_a_copy_heavier_than_expected_makes_others_leave() -> None:
    """And one that can never fit is refused at once, whatever is in memory under its name."""
    bench = Bench({"cpu": 30}, wait_s=60)
    bench.load("a")
    bench.load("b")
    own = bench.cache.copy(Key("c"), lambda: _loaded(25), need=Need("cpu", 10))
    assert bench.names == set() and own.model is not None
    del own
    bench.load("a", 20, keep_alive=math.inf)
    with pytest.raises(BudgetError) as caught:
        bench.cache.copy(Key("a"), lambda: _loaded(20), need=Need("cpu", 20))
    assert caught.value.plan.fit == "never"


def test_thrash_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """Once a minute, with the budget that would end it."""
    bench = Bench({"cpu": 2_000_000_000})
    for name in "abcabcabcabc":
        bench.load(name, 1_000_000_000)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1 and "'a' was loaded 3 times within a minute" in warnings[0]
    assert warnings[0].endswith("cpu=3.00GB")
    figures = bench.cache.statistics()
    assert figures.reloads == 9 and figures.reloads_per_minute == {"a": 3, "b": 3, "c": 3}
    bench.clock.now += 61
    assert bench.cache.statistics().reloads_per_minute == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", {}), ("cpu=8GB", {"cpu": 8 * 10**9}), ("cpu=1.5GiB, cuda=20gb", {"cpu": 3 << 29, "cuda:0": 20 * 10**9})],
)
def test_budgets_are_written_as_people_write_them(text: str, expected: dict[str, int]) -> None:
    """By device."""
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    "text", ["8GB", "cpu", "cpu=", "cpu=8XB", "cpu=-8GB", "gpu=8GB", "cuda:x=1GB", "cpu=8GB;cuda=1GB"]
)
def test_other_budgets_are_refused(text: str) -> None:
    """Not taken for none."""
    with pytest.raises(ValueError, match="8GB"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("10m", 600), ("1h30m", 5400), ("45", 45), (45, 45), ("0", 0), ("500ms", 0.5), (-1, math.inf), ("-10m", math.inf)],
)
def test_durations_are_ollamas(value: Any, seconds: float) -> None:
    """Negative is for ever."""
    assert parse_duration(value) == seconds


@pytest.mark.parametrize("value", ["", "soon", "10x", "m10", "nan", float("nan"), True, None])
def test_other_durations_are_refused(value: Any) -> None:
    """By name."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(value)


class CacheMachine(RuleBasedStateMachine):
    """Random calls: never over budget but by what callers hold, never evicted in use, and as the plan said."""

    @initialize(limit=st.integers(10, 60))
    def begin(self, limit: int) -> None:
        self.bench = Bench({"cpu": limit})
        self.leases: list[CachedModel[Key]] = []
        self.hands: list[Any] = []  # models that a caller holds
        self.requests = 0

    names = st.sampled_from("abcdef")

    @rule(
        name=names,
        size=st.integers(1, 40),
        lease=st.booleans(),
        hold=st.booleans(),
        keep=st.sampled_from([None, 0, 5, math.inf]),
    )
    def load(self, name: str, size: int, lease: bool, hold: bool, keep: float | None) -> None:
        cache = self.bench.cache
        size = 5 * (ord(name) - ord("a") + 1) if size % 2 else size
        plan = cache.plan(Key(name), Need("cpu", size))
        before = self.bench.names
        evicted = sum(cache.statistics().evictions.values())
        # A budget that was lowered while models were leased is met by the first call that can.
        is_over = sum(r.size_bytes for r, _ in cache.models()) > (self.bench.budget["cpu"] or 0)
        self.requests += 1
        try:
            cached = self.bench.load(name, size, lease=lease, keep_alive=keep)
        except BudgetError as error:
            # What a caller holds without a lease cannot be seen beforehand.
            assert plan.fit in ("never", "later") or (plan.fit == "after eviction" and self.hands)
            assert error.plan.name == name
            return
        assert plan.fit in ("now", "after eviction", "loaded")
        if plan.fit in ("now", "loaded") and not is_over:
            assert before - self.bench.names <= {name} and sum(cache.statistics().evictions.values()) - evicted <= 1
        elif not self.hands and not is_over:
            assert before - self.bench.names - {name} == {model.name for model in plan.leaving}
        if lease:
            self.leases.append(cached)
        if hold:
            self.hands.append(cached.model)

    @rule(name=names)
    def fail(self, name: str) -> None:
        def load() -> LoadResult:
            raise SourceError("gone")

        known = name in self.bench.names or any(m.identity == Key(name) for m, _ in self.bench.cache.models())
        self.requests += 1
        if known:
            self.bench.cache.get(Key(name), load, need=Need("cpu", 1))
        else:
            with pytest.raises((SourceError, BudgetError)):
                self.bench.cache.get(Key(name), load, need=Need("cpu", 1))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.leases:
            self.bench.cache.release(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))))

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.hands:
            self.hands.pop(data.draw(st.integers(0, len(self.hands) - 1)))

    @rule(name=st.one_of(st.none(), names))
    def evict(self, name: str | None) -> None:
        self.bench.cache.evict(name)

    @rule(seconds=st.integers(1, 20))
    def wait(self, seconds: int) -> None:
        self.bench.clock.now += seconds
        self.bench.cache.expire()

    @rule(limit=st.integers(10, 60))
    def change_budget(self, limit: int) -> None:
        self.bench.budget["cpu"] = limit

    @invariant()
    def leased_ones_are_there(self) -> None:
        for cached in getattr(self, "leases", ()):
            assert cached.is_present and cached.leases >= 1

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "bench"):
            return
        figures = self.bench.cache.statistics()
        assert figures.hits + figures.misses == self.requests
        assert figures.misses == figures.loads + figures.failed_loads
        use = figures.devices.get("cpu")
        if use is not None:
            assert use.reserved_bytes == 0
            assert use.cached_bytes == sum(r.size_bytes for r, out in self.bench.cache.models() if not out)

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            # Once nobody holds anything, one more load brings everything within the budget.
            while self.leases:
                self.bench.cache.release(self.leases.pop())
            self.hands.clear()
            for name in self.bench.names:
                self.bench.load(name, keep_alive=1e9)
            self.bench.load("last", 1)
            assert sum(r.size_bytes for r, _ in self.bench.cache.models()) <= self.bench.budget["cpu"]  # type: ignore[operator]
            self.bench.cache.evict()


CacheMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestModelCache = CacheMachine.TestCase


def test_eight_threads_keep_to_the_budget() -> None:
    """Random loads, leases, evictions and failures: no identity loads twice at a time, no leased one leaves."""
    bench = Bench({"cpu": 45}, wait_s=20)
    under_way: set[str] = set()
    faults: list[str] = []
    lock = threading.Lock()

    def work(seed: int) -> None:
        import random

        random_ = random.Random(seed)
        for _ in range(300):
            name = random_.choice("abcdefgh")

            def load(name: str = name) -> LoadResult:
                with lock:
                    if name in under_way:
                        faults.append(f"{name} twice")
                    under_way.add(name)
                time.sleep(random_.random() / 2000)
                with lock:
                    under_way.discard(name)
                if random_.random() < 0.05:
                    raise SourceError("gone")
                return _loaded(10)

            try:
                cached = bench.cache.get(Key(name), load, need=Need("cpu", 10), lease=True)
            except SourceError:
                continue
            if not cached.is_present:
                faults.append(f"{name} left while leased")
            used = bench.cache.statistics().devices["cpu"]
            if used.cached_bytes + used.reserved_bytes > 45:
                faults.append(f"{used} is over the budget")
            if random_.random() < 0.1:
                bench.cache.evict(random_.choice("abcdefgh"))
            bench.cache.release(cached)
            del cached

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    figures = bench.cache.statistics()
    assert faults == [] and figures.waiting == 0
    assert figures.hits + figures.misses + figures.shared_waits == 8 * 300
    assert figures.misses == figures.loads + figures.failed_loads
    assert all(cached.leases == 0 for cached, _ in bench.cache.models())

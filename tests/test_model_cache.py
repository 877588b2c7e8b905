"""The cache by itself: single flight, leases, eviction, and models that callers still hold."""

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from medvllm.errors import LoadError, SourceError
from medvllm.load_result import LoadResult
from medvllm.model_cache import ModelCache, ValueCache


@dataclass(frozen=True)
class Key:
    name: str
    option: int = 0
    base: "Key | None" = None


class Thing:
    """Something that weak references can point to."""


def _loaded() -> LoadResult:
    return LoadResult(Thing(), 10, 0.1, "transformers", mapped_bytes=0, reload_s=0.1)


@dataclass
class Loader:
    """Loads when told to, and counts."""

    go: threading.Event = field(default_factory=threading.Event)
    calls: int = 0
    error: BaseException | None = None

    def __call__(self) -> LoadResult:
        self.calls += 1
        assert self.go.wait(30)
        if self.error is not None:
            raise self.error
        return _loaded()


def _ready() -> Loader:
    loader = Loader()
    loader.go.set()
    return loader


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_threads_that_ask_during_a_load_share_it() -> None:
    """Ten callers, one load, one object; look-ups do not wait for it."""
    cache, loader, key = ModelCache[Key](), Loader(), Key("m")
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(cache.get, key, loader) for _ in range(10)]
        _until(lambda: loader.calls == 1)
        assert "m" not in cache and cache.models() == [] and cache.models() == []
        loader.go.set()
        models = {id(future.result().model) for future in asked}
    assert (len(models), loader.calls) == (1, 1)
    assert "m" in cache and list(cache) == ["m"] and len(cache) == 1


def test_a_failed_load_fails_once_for_all_and_the_next_call_tries_again() -> None:
    """Each waiter gets an error of its own; nothing is remembered."""
    cache, loader = ModelCache[Key](), Loader(error=SourceError("gone", repo="r"))
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(cache.get, Key("m"), loader) for _ in range(5)]
        _until(lambda: loader.calls == 1)
        time.sleep(0.05)
        loader.go.set()
        errors = [future.exception() for future in asked]
    assert loader.calls == 1
    assert all(type(error) is SourceError and error.repo == "r" for error in errors)
    assert len({id(error) for error in errors}) == 5
    assert cache.get(Key("m"), _ready()).model is not None


def test_an_interrupted_load_does_not_strand_the_others() -> None:
    """Ctrl-C reaches the caller that loads; who waits gets a LoadError."""
    cache, loader = ModelCache[Key](), Loader(error=KeyboardInterrupt())
    outcome: list[BaseException] = []

    def ask() -> None:
        try:
            cache.get(Key("m"), loader)
        except BaseException as error:
            outcome.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    _until(lambda: loader.calls == 1)
    time.sleep(0.05)
    loader.go.set()
    for thread in threads:
        thread.join()
    assert {type(error) for error in outcome} == {KeyboardInterrupt, LoadError}
    assert loader.calls == 1


def test_a_load_that_asks_for_itself_is_refused() -> None:
    """Rather than waiting for ever."""
    cache = ModelCache[Key]()

    def load() -> LoadResult:
        cache.get(Key("m"), _ready())
        return _loaded()

    with pytest.raises(LoadError, match="'m' asks for the same model"):
        cache.get(Key("m"), load)
    assert cache.get(Key("m"), _ready())


def test_a_leased_model_stays_until_its_last_lease_ends() -> None:
    """Eviction only marks it."""
    cache = ModelCache[Key]()
    first = cache.get(Key("m"), _ready(), lease=True)
    second = cache.get(Key("m"), _ready(), lease=True)
    assert first is second and first.leases == 2
    assert cache.evict("m") == 0
    cache.release(first)
    assert "m" in cache
    cache.release(second)
    assert "m" not in cache


def test_use_takes_the_mark_away() -> None:
    """A model that is asked for again is not to leave."""
    cache = ModelCache[Key]()
    lease = cache.get(Key("m"), _ready(), lease=True)
    cache.evict()
    assert cache.hit(lease)
    cache.release(lease)
    assert "m" in cache


def test_waiters_are_leased_before_the_load_is_seen() -> None:
    """An eviction between the load and the waking of those who waited takes nothing from them."""
    cache, loader = ModelCache[Key](), Loader()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cache.get, Key("m"), loader, lease=True) for _ in range(4)]
        _until(lambda: cache.statistics().shared_waits == 3)
        loader.go.set()
        _until(lambda: "m" in cache)
        assert cache.evict() == 0
        leases = [future.result() for future in asked]
    assert leases[0].leases == 4
    for lease in leases:
        cache.release(lease)
    assert "m" not in cache


def test_an_evicted_model_that_a_caller_holds_comes_back_without_a_load() -> None:
    """And is reported as held while it is; once dropped, it is loaded anew."""
    cache = ModelCache[Key]()
    held = cache.get(Key("m"), _ready()).model
    assert cache.evict("m") == 1
    assert [evicted for _, evicted in cache.models()] == [True]
    again = _ready()
    assert cache.get(Key("m"), again).model is held
    assert again.calls == 0 and "m" in cache
    cache.evict()
    del held
    gc.collect()
    assert cache.models() == []
    cache.get(Key("m"), again)
    assert again.calls == 1


def test_eviction_during_a_load_lets_the_model_go_to_its_callers_alone() -> None:
    """It is not in memory afterwards; asked for again while it loads, it stays."""
    cache, loader = ModelCache[Key](), Loader()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(cache.get, Key("m"), loader)
        _until(lambda: loader.calls == 1)
        cache.evict("m")
        loader.go.set()
        assert asked.result().model is not None
        assert "m" not in cache
        loader.go.clear()
        gc.collect()
        asked = pool.submit(cache.get, Key("n"), loader)
        _until(lambda: loader.calls == 2)
        cache.evict()
        again = pool.submit(cache.get, Key("n"), loader, lease=True)
        _until(lambda: cache.statistics().shared_waits == 1)
        loader.go.set()
        assert again.result() is asked.result()
    assert "n" in cache


def test_a_waiter_that_is_refused_leaves_no_lease_behind() -> None:
    """The model can be evicted afterwards."""
    cache = ModelCache[Key]()

    def load() -> LoadResult:
        with pytest.raises(LoadError):
            cache.get(Key("m"), _ready(), lease=True)
        return _loaded()

    cached = cache.get(Key("m"), load, lease=True)
    assert cached.leases == 1
    cache.release(cached)
    assert cache.evict("m") == 1


def test_a_caller_inside_a_load_does_not_wait_for_another() -> None:
    """It gets a model of its own, so that two loads never wait for each other."""
    cache, loader = ModelCache[Key](), Loader()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(cache.get, Key("m"), loader)
        _until(lambda: loader.calls == 1)
        own = cache.get(Key("m"), _ready(), lease=True, may_wait=False)
        cache.release(own)
        loader.go.set()
        assert asked.result().model is not own.model


def test_eviction_is_by_name() -> None:
    """All identities of the name leave, others stay; nothing by that name is no error."""
    cache = ModelCache[Key]()
    for key in (Key("a", 1), Key("a", 2), Key("b")):
        cache.get(key, _ready())
    assert cache.evict("a") == 2
    assert list(cache) == ["b"]
    assert cache.evict("nobody") == 0


def test_many_threads_on_few_models_never_load_one_twice_at_a_time() -> None:
    """Random gets, leases and evictions from eight threads."""
    cache = ModelCache[Key]()
    under_way: dict[str, int] = {}
    lock = threading.Lock()

    def work(seed: int) -> int:
        bad = 0
        for i in range(300):
            name = f"m{(seed * 7 + i * 13) % 5}"

            def load(name: str = name) -> LoadResult:
                nonlocal bad
                with lock:
                    under_way[name] = under_way.get(name, 0) + 1
                    bad += under_way[name] > 1
                time.sleep(0.0002)
                with lock:
                    under_way[name] -= 1
                return _loaded()

            cached = cache.get(Key(name), load, lease=True)
            bad += cached.model is None
            if i % 3 == 0:
                cache.evict(name)
                bad += name not in cache  # we hold a lease on it
            cache.release(cached)
        return bad

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0
    assert all(cached.leases == 0 for cached, _ in cache.models())


def test_keep_alive_goes_by_a_clock_that_nobody_sets() -> None:
    """A wall clock that is set back an hour would keep a model an hour longer."""
    assert ModelCache()._clock is time.monotonic


def test_what_is_made_slowly_holds_up_nobody_who_wants_another() -> None:
    """What was dropped meanwhile is handed out and not kept."""
    once: ValueCache[str, object] = ValueCache()
    begun, end = threading.Event(), threading.Event()

    def slowly() -> object:
        begun.set()
        end.wait()
        return object()

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(once.get, "slow", slowly)
        begun.wait()
        other = once.get("other", object)
        assert once.get("other", object) is other and once.get("slow", lambda: "own", may_wait=False) == "own"
        once.discard(lambda key: True)
        assert once.get("other", object) is not other
        end.set()
        made = first.result()
    assert once.get("slow", object) is not made


def test_a_failure_is_told_to_all_who_wait_and_forgotten() -> None:
    """The next call tries again."""
    once: ValueCache[str, str] = ValueCache()

    def fail() -> str:
        with pytest.raises(LoadError, match="another"):
            once.get("b", lambda: (_ for _ in ()).throw(LoadError("another")))
        raise LoadError("this")

    with pytest.raises(LoadError, match="this"):
        once.get("a", fail)
    assert once.get("a", lambda: "made") == "made"

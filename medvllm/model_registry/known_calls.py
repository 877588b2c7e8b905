"""What calls meant when they were made before, so that a call for a model in memory resolves nothing.

What a call depends on is looked at in full at most every `TRUST_S`: the settings files, the working directory, the
catalogue, the lock, and the model's files and folders. In between, a call costs no system call. The environment, and
what this process itself has changed, are looked at by every call.
"""

import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

from medvllm import settings
from medvllm.model_cache import CachedModel
from medvllm.options import Identity, LoadOptions
from medvllm.own_changes import own_changes

TRUST_S = 0.01
_MAX_CALLS = 10_000  # calls that are remembered
# Settings that decide what a call means, and those that decide whether it still means that.
_SETTINGS = settings.Texts(settings.DEVICE, settings.DTYPE, settings.LOCK_FILE, settings.REQUIRE_LOCK)
_CONDITIONS = settings.Texts(settings.CATALOG, settings.ALLOW_UNREGISTERED, settings.TRUST_REMOTE_CODE)
# The types of the values of options that say the same whenever they are equal, and are hashable.
_PLAIN_TYPES: frozenset[type] = frozenset({str, type(None)})

T = TypeVar("T")  # what a call meant
Hit = Callable[[CachedModel[Identity]], bool]
Found = tuple[T, CachedModel[Identity]]


class Look(NamedTuple):
    """A look at everything that a call depends on. A change after its beginning is seen by the next look.

    Attributes:
        conditions: The settings that decide whether the call still means the same.
        own_changes: The number of `own_changes`.
        trusted_until: When the next look is due, on the monotonic clock.
    """

    conditions: Hashable
    own_changes: int
    trusted_until: float

    @classmethod
    def begin(cls) -> "Look":
        """Return a look that begins now."""
        return cls(tuple(_CONDITIONS.values()), own_changes.number, time.monotonic() + TRUST_S)


class Turn:
    """Lets one thread look, and the others that call the same wait for it.

    Each of them would otherwise give up the interpreter at every system call of its own look. Nobody waits for longer
    than TRUST_S: the disk may hang, and in a forked child the thread that looked may be missing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[bool]:
        """Wait for the turn. Yields whether the caller has it."""
        has_turn = self._lock.acquire(timeout=TRUST_S)
        try:
            yield has_turn
        finally:
            if has_turn:
                self._lock.release()


class KnownCall(NamedTuple, Generic[T]):
    """What a call meant, and where its model was found.

    Attributes:
        target: What it meant.
        find_cached: Returns its model; None once it has gone. A call that is remembered keeps no model in memory.
        turn: For the threads that want to look.
        look: The last look; None if there was none since the model was loaded.
    """

    target: T
    find_cached: Callable[[], CachedModel[Identity] | None]
    turn: Turn
    look: Look | None = None


class KnownCalls(Generic[T]):
    """The calls that were made before. An item is replaced, never changed: that needs no lock."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, KnownCall[T]] = {}

    def put(self, key: Hashable, target: T, cached: CachedModel[Identity]) -> None:
        """Remember a call whose model was loaded now.

        Args:
            key: The key of the call; None if it is not remembered.
            target: What the call meant.
            cached: Its model.
        """
        if key is not None:
            self._put(key, KnownCall(target, weakref.ref(cached), Turn()))

    def find_trusted(self, key: Hashable, hit: Hit) -> Found[T] | None:
        """Return what a call means and its model in memory, if its last look is trusted.

        That look began less than TRUST_S ago, and this process has changed nothing since.

        Args:
            key: The key of the call; None if it is not remembered.
            hit: Counts a use of the model; returns False if it has left memory.
        """
        known = self._calls.get(key)
        if (
            known is not None
            and (look := known.look) is not None
            and time.monotonic() < look.trusted_until
            and own_changes.number == look.own_changes
            and tuple(_CONDITIONS.values()) == look.conditions
            and (cached := known.find_cached()) is not None
            and hit(cached)
        ):
            return known.target, cached
        return None

    def look(self, key: Hashable, hit: Hit, is_current: Callable[[T], bool]) -> Found[T] | tuple[T | None, None]:
        """Return what a call means and its model in memory, after a look at everything that the meaning depends on.

        Args:
            key: The key of the call; None if it is not remembered.
            hit: As for `find_trusted`.
            is_current: Looks whether a call still means what it meant, and its files are unchanged.

        Returns:
            What the call means, or None if that must be found out; its model, or None if it must be loaded.
        """
        known = self._calls.get(key)
        if known is None:
            return None, None
        with known.turn.take() as has_turn:  # one thread looks, and the others use what it has seen
            if (found := self.find_trusted(key, hit)) is not None:
                return found
            look = Look.begin()
            if not is_current(known.target):
                return None, None
            cached = known.find_cached()
            if cached is not None and hit(cached):
                self._put(key, known._replace(look=look, turn=known.turn if has_turn else Turn()))
                return known.target, cached
        return known.target, None

    def _put(self, key: Hashable, call: KnownCall[T]) -> None:
        if len(self._calls) >= _MAX_CALLS:
            self._calls.clear()
        self._calls[key] = call


def key_of(name: object, options: Mapping[str, Any], plain_types: frozenset[type] = _PLAIN_TYPES) -> Hashable:
    """Return the key of a call; None if the call is not remembered: only a text always means the same.

    Args:
        name: What the caller gave as the model's name.
        options: The other keywords of the call.
        plain_types: The types of values that need not be parsed first: equal ones mean the same, and are hashable.

    Raises:
        RequestError, UnsafeWeightsError: An option cannot be used.
    """
    if not isinstance(name, str):
        return None
    given: Hashable = None
    if options:
        # Others are parsed first: 1 is equal to True.
        is_plain = plain_types.issuperset(map(type, options.values()))
        given = tuple(options.items()) if is_plain else LoadOptions.from_kwargs(options)
    return name, given, _SETTINGS.files.generation, *_SETTINGS.values()

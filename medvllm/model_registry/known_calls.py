"""What calls meant when they were made before, so that a call for a model in memory resolves nothing.

What a call depends on is looked at in full at most every `TRUST_S`: the settings files, the working directory, the
catalogue, the lock, and the model's files and folders. In between, a call costs no system call. The environment, and
what this process itself has changed, are looked at by every call.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

from medvllm import loading, settings
from medvllm.model_cache import CachedModel
from medvllm.model_registry.resolver import LoadTarget
from medvllm.options import Identity, LoadOptions
from medvllm.own_changes import own_changes

TRUST_S = 0.01
_MAX_CALLS = 10_000  # calls that are remembered
# Settings that decide what a call means, and those that decide whether it still means that.
_SETTINGS = settings.Texts(settings.DEVICE, settings.DTYPE, settings.LOCK_FILE, settings.REQUIRE_LOCK)
_CONDITIONS = settings.Texts(settings.CATALOG, settings.ALLOW_UNREGISTERED, settings.TRUST_REMOTE_CODE)


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

    def is_trusted(self) -> bool:
        """Return whether it began less than TRUST_S ago, and this process has changed nothing since."""
        return (
            time.monotonic() < self.trusted_until
            and own_changes.number == self.own_changes
            and tuple(_CONDITIONS.values()) == self.conditions
        )


class KnownCall(NamedTuple):
    """What a call meant, and where its model was found.

    Attributes:
        target: What it meant.
        find_cached: Returns its model; None once it has gone. A call that is remembered keeps no model in memory.
        look: The last look; None if there was none since the model was loaded.
    """

    target: LoadTarget
    find_cached: Callable[[], CachedModel[Identity] | None]
    look: Look | None = None


class KnownCalls:
    """The calls that were made before. An item is replaced, never changed: that needs no lock."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, KnownCall] = {}
        self.get = self._calls.get

    def put(self, key: Hashable, call: KnownCall) -> None:
        """Remember a call."""
        if len(self._calls) >= _MAX_CALLS:
            self._calls.clear()
        self._calls[key] = call


def key_of(name: object, options: Mapping[str, Any]) -> Hashable:
    """Return the key of a call; None if the call is not remembered: only a text always means the same.

    Raises:
        RequestError, UnsafeWeightsError: An option cannot be used.
    """
    if not isinstance(name, str):
        return None
    given: Hashable = None
    if options:
        # Values of these types are equal only if they mean the same. Others are parsed first: 1 is equal to True.
        is_plain = loading.PLAIN_TYPES.issuperset(map(type, options.values()))
        given = tuple(options.items()) if is_plain else LoadOptions.from_kwargs(options)
    return name, given, _SETTINGS.files.generation, *_SETTINGS.values()

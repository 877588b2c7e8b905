"""What counts on each device: models in memory, those that callers still hold, and loads under way."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from medvllm.model_cache.plan import Need
from medvllm.model_cache.statistics import DeviceUse


class Named(Protocol):
    """What models are told apart by: hashable, and it knows the entry's name."""

    @property
    def name(self) -> str: ...
    def __hash__(self) -> int: ...


I = TypeVar("I", bound=Named)  # noqa: E741  # the identity's type


@dataclass(eq=False)
class CachedModel(Generic[I]):
    """A model in memory. Only the cache changes it, under its lock."""

    identity: I
    model: Any
    device: str
    size_bytes: int
    load_s: float
    reload_s: float  # what loading it again is expected to take
    mapped_bytes: int  # of size_bytes, when it was loaded: a file's, shared with every process that maps it
    loaded_at: float  # seconds since the epoch
    last_used: float = 0.0  # by the cache's clock, which nobody sets
    hits: int = 0
    leases: int = 0
    is_noted: bool = False  # whether others see that it is leased, or are about to
    keep_alive: float | None = None  # seconds after its last use; PINNED; None: for as long as there is room
    present: bool = True  # False once it has left
    leaving: bool = False  # evicted while leased: it goes when the last lease ends


@dataclass
class Accounts(Generic[I]):
    """The books of a cache; it keeps them under its lock.

    `held` are evicted models that a caller still holds: they come back without a load. `copies` are a caller's own.
    """

    models: dict[I, CachedModel[I]] = field(default_factory=dict)
    held: dict[I, tuple["weakref.ref[Any]", CachedModel[I]]] = field(default_factory=dict)
    copies: list[tuple["weakref.ref[Any]", CachedModel[I]]] = field(default_factory=list)
    reserved: dict[object, Need] = field(default_factory=dict)

    def used(self, device: str) -> int:
        """Return the bytes that count on a device now."""
        self.forget_dead()
        return sum(item.size_bytes for item in self._items() if item.device == device)

    def use(self, device: str, budget: int | None) -> DeviceUse:
        """Return the same by kind."""
        self.forget_dead()
        cached = sum(model.size_bytes for model in self.models.values() if model.device == device)
        held = sum(model.size_bytes for model in self.outside() if model.device == device)
        return DeviceUse(cached, held, self.used(device) - cached - held, budget)

    def devices(self) -> list[str]:
        """Return the devices on which anything counts."""
        self.forget_dead()
        return sorted({item.device for item in self._items()})

    def outside(self) -> Iterator[CachedModel[I]]:
        """Give the models that only callers hold."""
        yield from (kept for _, kept in self.held.values())
        yield from (kept for _, kept in self.copies)

    def _items(self) -> Iterator[CachedModel[I] | Need]:
        yield from self.models.values()
        yield from self.outside()
        yield from self.reserved.values()

    def forget_dead(self) -> None:
        """Strike out what nobody holds any more."""
        self.held = {identity: kept for identity, kept in self.held.items() if kept[0]() is not None}
        self.copies = [kept for kept in self.copies if kept[0]() is not None]

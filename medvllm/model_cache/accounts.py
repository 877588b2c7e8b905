"""Which models use memory on each device: cached ones, ones that only callers hold, and loads in progress."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from medvllm.model_cache.plan import Need
from medvllm.model_cache.statistics import DeviceUse
from medvllm.model_cache.tally import Tally
from medvllm.quantities import PINNED


class Named(Protocol):
    """The key of a cached model: hashable, with the name of the catalogue entry and the key of an adapter's base."""

    @property
    def name(self) -> str: ...
    @property
    def base(self) -> "Named | None": ...
    def __hash__(self) -> int: ...


I = TypeVar("I", bound=Named)  # noqa: E741  # the identity's type


@dataclass(eq=False)
class CachedModel(Generic[I]):
    """A model in memory. Only the cache changes it, under its lock; a hit changes `last_used` and `hits` without it."""

    identity: I
    model: Any
    device: str
    size_bytes: int
    load_s: float
    reload_s: float  # seconds that loading it again is expected to take
    mapped_bytes: int  # of size_bytes, at load time: a file's pages, shared with every process that maps it
    loaded_at: float  # seconds since the epoch
    last_used: float = 0.0  # on the cache's monotonic clock
    hits: Tally = field(default_factory=Tally)  # shared by the copies of this object
    leases: int = 0
    is_listed_as_leased: bool = False  # other processes see that it is leased, or will soon
    keep_alive: float | None = None  # seconds after its last use; PINNED; None: until another model needs the memory
    is_present: bool = True  # False once it has left the cache, and for a private copy
    is_leaving: bool = False  # evicted while leased: it leaves when the last lease ends


@dataclass
class Accounts(Generic[I]):
    """The models that count against the limits. Every method needs the cache's lock.

    Attributes:
        models: The cached models.
        held: Evicted models that a caller still holds. They keep counting, and come back without a load.
        copies: Private copies that callers asked for.
        reserved: What loads in progress are expected to take, by ticket.
    """

    models: dict[I, CachedModel[I]] = field(default_factory=dict)
    held: dict[I, tuple["weakref.ref[Any]", CachedModel[I]]] = field(default_factory=dict)
    copies: list[tuple["weakref.ref[Any]", CachedModel[I]]] = field(default_factory=list)
    reserved: dict[object, Need] = field(default_factory=dict)

    def adapters_of(self, cached: CachedModel[I]) -> list[CachedModel[I]]:
        """Return the cached adapters of a model. They use its memory, so it stays for as long as they do."""
        return [model for model in self.models.values() if model.identity.base == cached.identity]

    def base_of(self, cached: CachedModel[I]) -> CachedModel[I] | None:
        """Return the cached base of an adapter; None for another model."""
        base: Any = cached.identity.base
        return None if base is None else self.models.get(base)

    def is_in_use(self, cached: CachedModel[I]) -> bool:
        """Return whether a model is leased, or the base of a cached adapter."""
        return cached.leases > 0 or bool(self.adapters_of(cached))

    def pinned(self) -> list[CachedModel[I]]:
        """Return the pinned models, and the bases of pinned adapters."""
        own = {identity for identity, model in self.models.items() if model.keep_alive == PINNED}
        own |= {identity.base for identity in own if identity.base is not None}  # type: ignore[misc]
        return [model for identity, model in self.models.items() if identity in own]

    def count_models(self) -> int:
        """Return how many models are cached. An adapter is part of its base."""
        return sum(identity.base is None for identity in self.models)

    def used_bytes(self, device: str) -> int:
        """Return the bytes that count on a device now."""
        self.forget_freed()
        return sum(item.size_bytes for item in self._items() if item.device == device)

    def device_use(self, device: str, budget: int | None) -> DeviceUse:
        """Return the bytes that count on a device, by kind."""
        self.forget_freed()
        cached = sum(model.size_bytes for model in self.models.values() if model.device == device)
        held = sum(model.size_bytes for model in self.held_by_callers() if model.device == device)
        return DeviceUse(cached, held, self.used_bytes(device) - cached - held, budget)

    def devices(self) -> list[str]:
        """Return the devices on which anything counts."""
        self.forget_freed()
        return sorted({item.device for item in self._items()})

    def held_by_callers(self) -> Iterator[CachedModel[I]]:
        """Yield the models that only callers hold, without their `model`."""
        yield from (kept for _, kept in self.held.values())
        yield from (kept for _, kept in self.copies)

    def add_copy(self, own: CachedModel[I]) -> None:
        """Count a private copy for as long as its caller holds it."""
        self.copies.append((weakref.ref(own.model), replace(own, model=None)))

    def remove(self, cached: CachedModel[I]) -> None:
        """Take a model out of the cache. It counts as held until no caller has it any more."""
        del self.models[cached.identity]
        cached.is_present = False
        # A copy without the model: a caller that has just been given `cached` still reads its model.
        kept = replace(cached, model=None, is_leaving=False, keep_alive=None)
        self.held[cached.identity] = weakref.ref(cached.model), kept

    def restore(self, identity: I) -> CachedModel[I] | None:
        """Put a model back that a caller still holds, and return it; None when nobody holds it."""
        reference, cached = self.held.pop(identity, (None, None))
        model = reference() if reference is not None else None
        if model is None or cached is None:
            return None
        base: Any = identity.base
        if base is not None and base not in self.models and self.restore(base) is None:
            return None
        cached.model, cached.is_present = model, True
        self.models[identity] = cached
        return cached

    def forget_freed(self) -> None:
        """Remove the models that no caller holds any more."""
        self.held = {identity: kept for identity, kept in self.held.items() if kept[0]() is not None}
        self.copies = [kept for kept in self.copies if kept[0]() is not None]

    def _items(self) -> Iterator[CachedModel[I] | Need]:
        yield from self.models.values()
        yield from self.held_by_callers()
        yield from self.reserved.values()

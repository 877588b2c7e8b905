"""What a registry has done so far."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Reason = Literal["room", "count", "expired", "asked", "replaced", "memory", "asleep", "woken"]


@dataclass(frozen=True)
class DeviceUse:
    """Bytes on one device: of models in memory, of others that callers hold, and kept for loads under way."""

    cached_bytes: int
    held_bytes: int
    reserved_bytes: int
    budget_bytes: int | None  # None: no limit


@dataclass(frozen=True)
class Statistics:
    """Counts since the registry was made. Every request is a hit, a miss, or shared another's load.

    `loads` + `failed_loads` is the number of misses that are over; `evictions` are by reason: for room, for the count
    of models, expired, asked for, replaced by another version, for want of the device's memory, to sleep, or to wake.
    """

    hits: int
    misses: int
    shared_waits: int
    loads: int
    failed_loads: int
    load_s: float
    reloads: int  # loads of what had left for room less than a minute before
    reloads_per_minute: dict[str, int]  # in the last minute, by entry
    evictions: dict[str, int]
    loaded_by: dict[str, int]  # "transformers", "replay" or "sleep" -> how many
    no_recipe: dict[str, int]  # why a model's next load cannot be a replay -> how often
    devices: dict[str, DeviceUse]

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON has them."""
        return vars(self) | {"devices": {name: vars(use) for name, use in self.devices.items()}}


@dataclass
class Counts:
    """The figures while they change; the cache does so under its lock."""

    hits: int = 0
    misses: int = 0
    shared_waits: int = 0
    loads: int = 0
    failed_loads: int = 0
    load_s: float = 0.0
    reloads: int = 0
    evictions: Counter[str] = field(default_factory=Counter)
    loaded_by: Counter[str] = field(default_factory=Counter)
    no_recipe: Counter[str] = field(default_factory=Counter)

    def frozen(self, devices: Mapping[str, DeviceUse], reloads_per_minute: Mapping[str, int]) -> Statistics:
        """Return the figures as they stand."""
        figures: dict[str, Any] = {
            name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()
        }
        return Statistics(**figures, devices=dict(devices), reloads_per_minute=dict(reloads_per_minute))

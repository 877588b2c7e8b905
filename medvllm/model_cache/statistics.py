"""What a registry has done so far."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medvllm.load_result import LoadResult
from medvllm.model_cache.tally import Tally

Reason = Literal["room", "count", "expired", "asked", "replaced", "memory", "offloaded", "restored", "refused"]


@dataclass(frozen=True)
class DeviceUse:
    """The bytes in use on one device.

    Attributes:
        cached_bytes: Bytes of cached models.
        held_bytes: Bytes of evicted models and private copies that callers hold.
        reserved_bytes: Bytes that are reserved for loads in progress.
        budget_bytes: The budget; None means no limit.
    """

    cached_bytes: int
    held_bytes: int
    reserved_bytes: int
    budget_bytes: int | None


@dataclass(frozen=True)
class Statistics:
    """Counts since the registry was made. Each request is a hit, a miss, or a wait for a load that it shares.

    Attributes:
        hits: Requests that found their model in memory.
        misses: Requests that began a load. Once no load is in progress, this equals `loads` + `failed_loads`.
        shared_waits: Requests that waited for another caller's load.
        loads: Loads that succeeded.
        failed_loads: Loads that failed.
        load_s: Seconds that all loads took together.
        reloads: Loads of models that were evicted less than a minute before to make room for others.
        reloads_per_minute: Reloads within the last minute, by entry.
        waiting: Loads that wait for memory now.
        evictions: Evictions by reason: "room" (for bytes), "count" (for the number of models), "expired" (its
            keep_alive was over), "asked" (by a caller), "replaced" (by another version or other files), "memory" (the
            device was full), "offloaded" (to host memory), "restored" (from host memory) and "refused" (an engine
            that must not serve).
        loaded_by: Loads by how they were done: "transformers", "replay", "offload" (back from host memory)
            or "adapter" (into a base that is in memory).
        reload_fallback_reasons: Why loaded models cannot be replayed the next time, with the number of loads.
        devices: The bytes in use, by device.
    """

    hits: int
    misses: int
    shared_waits: int
    loads: int
    failed_loads: int
    load_s: float
    reloads: int
    reloads_per_minute: dict[str, int]
    waiting: int
    evictions: dict[str, int]
    loaded_by: dict[str, int]
    reload_fallback_reasons: dict[str, int]
    devices: dict[str, DeviceUse]

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON values."""
        return vars(self) | {"devices": {name: vars(use) for name, use in self.devices.items()}}


@dataclass
class Counts:
    """The counts while they change: `hits` at any time, and the others under the cache's lock."""

    hits: Tally = field(default_factory=Tally)
    misses: int = 0
    shared_waits: int = 0
    loads: int = 0
    failed_loads: int = 0
    load_s: float = 0.0
    reloads: int = 0
    evictions: Counter[str] = field(default_factory=Counter)
    loaded_by: Counter[str] = field(default_factory=Counter)
    reload_fallback_reasons: Counter[str] = field(default_factory=Counter)

    def add_load(self, result: LoadResult) -> None:
        """Count a load that succeeded."""
        self.loads += 1
        self.load_s += result.load_s
        self.loaded_by[result.loaded_by] += 1
        if result.reload_fallback_reason is not None:
            self.reload_fallback_reasons[result.reload_fallback_reason] += 1

    def freeze(
        self, *, waiting: int, devices: Mapping[str, DeviceUse], reloads_per_minute: Mapping[str, int]
    ) -> Statistics:
        """Return the counts as they are now."""
        counts: dict[str, Any] = {
            name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()
        }
        counts["hits"] = self.hits.value()
        return Statistics(**counts, waiting=waiting, devices=dict(devices), reloads_per_minute=dict(reloads_per_minute))

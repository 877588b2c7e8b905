"""Models that are loaded again soon after they were evicted: the budget is too small for what is used together."""

from collections import deque
from collections.abc import Hashable

_MINUTE_S = 60.0
_OFTEN = 3  # reloads of one entry within a minute that deserve a warning


class Reloads:
    """The models that were evicted within the last minute and came back. It needs the cache's lock."""

    def __init__(self) -> None:
        self._evicted: dict[Hashable, tuple[float, str, int]] = {}  # identity -> time, device and size in bytes
        self._times: dict[str, deque[float]] = {}  # entry -> times of its reloads
        self._warned_at = float("-inf")

    def record_eviction(self, identity: Hashable, device: str, size_bytes: int, now: float) -> None:
        """Record that a model was evicted to make room for another."""
        self._evicted[identity] = now, device, size_bytes

    def record_load(
        self, identity: Hashable, name: str, device: str, used_bytes: int, now: float
    ) -> tuple[bool, str | None]:
        """Record a load.

        Returns:
            Whether the model was evicted less than a minute ago; and a warning when its entry keeps coming back.
        """
        self._evicted = {key: seen for key, seen in self._evicted.items() if now - seen[0] < _MINUTE_S}
        if self._evicted.pop(identity, None) is None:
            return False, None
        times = self._recent(self._times.setdefault(name, deque()), now)
        times.append(now)
        if len(times) >= _OFTEN and now - self._warned_at >= _MINUTE_S:
            self._warned_at = now
            # Everything used within a minute: the models in memory, and those evicted for them.
            wanted = used_bytes + sum(size for _, place, size in self._evicted.values() if place == device)
            return True, (
                f"{name!r} was loaded {_OFTEN} times within a minute, because other models took its memory. "
                f"To hold all of them: {device}={wanted / 1e9:.2f}GB"
            )
        return True, None

    def per_minute(self, now: float) -> dict[str, int]:
        """Return how many reloads each entry had within the last minute."""
        counts = {name: len(self._recent(times, now)) for name, times in self._times.items()}
        return {name: count for name, count in counts.items() if count}

    @staticmethod
    def _recent(times: deque[float], now: float) -> deque[float]:
        while times and now - times[0] >= _MINUTE_S:
            times.popleft()
        return times

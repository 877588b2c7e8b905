"""Models that come back as soon as they have left: the budget is too small for what is wanted at the same time."""

from collections import deque
from collections.abc import Hashable

_MINUTE_S = 60.0
_OFTEN = 3  # reloads of one entry in a minute that are worth a warning


class Reloads:
    """What left for room within the last minute, and came back. The cache tells it, under its lock."""

    def __init__(self) -> None:
        self._left: dict[Hashable, tuple[float, str, int]] = {}  # identity -> when, from where, and its bytes
        self._times: dict[str, deque[float]] = {}  # entry -> when it was loaded again so soon
        self._warned_at = float("-inf")

    def left(self, identity: Hashable, device: str, size_bytes: int, now: float) -> None:
        """Note that a model left for another's room."""
        self._left[identity] = now, device, size_bytes

    def loaded(
        self, identity: Hashable, name: str, device: str, used_bytes: int, now: float
    ) -> tuple[bool, str | None]:
        """Note a load; return whether it is a reload, and a warning when an entry keeps coming back."""
        self._left = {key: left for key, left in self._left.items() if now - left[0] < _MINUTE_S}
        if self._left.pop(identity, None) is None:
            return False, None
        times = self._recent(self._times.setdefault(name, deque()), now)
        times.append(now)
        if len(times) >= _OFTEN and now - self._warned_at >= _MINUTE_S:
            self._warned_at = now
            # Wanted within a minute: what is there, and what has left for it.
            wanted = used_bytes + sum(size for _, place, size in self._left.values() if place == device)
            return True, (
                f"{name!r} was loaded {_OFTEN} times within a minute, as others took its room: "
                f"{device}={wanted / 1e9:.2f}GB would hold all of them"
            )
        return True, None

    def per_minute(self, now: float) -> dict[str, int]:
        """Return how often each entry came back within the last minute."""
        counts = {name: len(self._recent(times, now)) for name, times in self._times.items()}
        return {name: count for name, count in counts.items() if count}

    @staticmethod
    def _recent(times: deque[float], now: float) -> deque[float]:
        while times and now - times[0] >= _MINUTE_S:
            times.popleft()
        return times

"""The eviction policy: which model leaves first when memory is needed."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from medvllm.quantities import PINNED


class Candidate(Protocol):
    """The facts about a model that the policy uses."""

    leases: int
    last_used: float
    reload_s: float
    keep_alive: float | None


C = TypeVar("C", bound=Candidate)
_SHORTEST_RELOAD_S = 0.001  # faster reloads are not cheaper


def is_expired(model: Candidate, now: float) -> bool:
    """Return whether a model has been idle for its whole `keep_alive`."""
    return model.keep_alive is not None and now - model.last_used >= model.keep_alive


def eviction_order(models: Iterable[C], now: float) -> list[C]:
    """Return the models that may be evicted, the first one to leave first. Leased and pinned models stay.

    Expired models leave first. Then models are ordered by idle time divided by reload time, longest first.
    """
    free = [model for model in models if not model.leases and model.keep_alive != PINNED]
    return sorted(
        free,
        key=lambda model: (
            not is_expired(model, now),
            -(now - model.last_used) / max(model.reload_s, _SHORTEST_RELOAD_S),
            model.last_used,
        ),
    )


def describe_idle(model: Candidate, now: float) -> str:
    """Return why this model leaves, in words."""
    idle = now - model.last_used
    expired = ", beyond its keep_alive" if is_expired(model, now) else ""
    return f"idle for {idle:,.0f} s{expired}; a reload takes {model.reload_s:.2g} s"

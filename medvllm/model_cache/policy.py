"""Who leaves first when room is needed."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from medvllm.quantities import PINNED


class Candidate(Protocol):
    """What the order depends on."""

    leases: int
    last_used: float
    reload_s: float
    keep_alive: float | None


C = TypeVar("C", bound=Candidate)
_FASTEST_S = 0.001  # a load that took less is not worth less


def is_expired(model: Candidate, now: float) -> bool:
    """Return whether a model has been idle for as long as it was to stay."""
    return model.keep_alive is not None and now - model.last_used >= model.keep_alive


def order(models: Iterable[C], now: float) -> list[C]:
    """Return the models that may leave, the first to leave first: no leased one, no pinned one.

    Expired ones lead; then it goes by idle time over what a reload costs, the longest idle of equals first.
    """
    free = [model for model in models if not model.leases and model.keep_alive != PINNED]
    return sorted(
        free,
        key=lambda model: (
            not is_expired(model, now),
            -(now - model.last_used) / max(model.reload_s, _FASTEST_S),
            model.last_used,
        ),
    )


def why(model: Candidate, now: float) -> str:
    """Return the reason that a model is the one to leave, in words."""
    idle = now - model.last_used
    expired = ", beyond its keep_alive" if is_expired(model, now) else ""
    return f"idle for {idle:,.0f} s{expired}; a reload takes {model.reload_s:.2g} s"

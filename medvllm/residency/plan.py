"""What a load will take and who would leave for it, told before it happens."""

from dataclasses import dataclass
from typing import Any, Literal

Fit = Literal["resident", "now", "after eviction", "later", "never"]
KnownBy = Literal["measured", "headers", "unknown"]


@dataclass(frozen=True)
class Need:
    """What a load is expected to take. `known_by`: an earlier load's figure, or the checkpoint's headers."""

    device: str = "cpu"
    size_bytes: int = 0
    known_by: KnownBy = "unknown"
    load_s: float | None = None  # what the last load of it took
    keep_alive: float | None = None  # how long it stays after its last use, unless a caller says otherwise


@dataclass(frozen=True)
class Leaving:
    """A model that would make room, and why it is the one."""

    name: str
    size_bytes: int
    why: str


@dataclass(frozen=True)
class Plan:
    """Whether a model fits on its device, and at what cost.

    "later": once callers release or drop models of theirs; "never": not within this budget. That a caller holds a model
    without a lease cannot be seen beforehand: such a one leaves, and its bytes come back when the caller lets go.
    """

    name: str
    device: str
    fit: Fit
    size_bytes: int
    known_by: KnownBy
    used_bytes: int  # by models in memory, models that callers hold, and loads under way
    budget_bytes: int | None  # None: no limit
    leaving: tuple[Leaving, ...]
    load_s: float | None  # what the last load of it took; None when it is not known

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        return vars(self) | {"leaving": [vars(model) for model in self.leaving]}

    def __str__(self) -> str:
        size, used = f"{self.size_bytes / 1e6:,.1f} MB", f"{self.used_bytes / 1e6:,.1f} MB"
        budget = "no limit" if self.budget_bytes is None else f"{self.budget_bytes / 1e6:,.1f} MB"
        return f"{self.name!r} takes {size} ({self.known_by}) on {self.device}, where {used} of {budget} are used"

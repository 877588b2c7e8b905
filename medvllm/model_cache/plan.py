"""What a load will take and who would leave for it, told before it happens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from medvllm.quantities import shown_size

Fit = Literal["loaded", "now", "after eviction", "later", "never"]
KnownBy = Literal["measured", "headers", "unknown"]


@dataclass(frozen=True)
class Need:
    """What a load is expected to take. `known_by`: an earlier load's figure, or the checkpoint's headers."""

    device: str = "cpu"
    size_bytes: int = 0
    known_by: KnownBy = "unknown"
    load_s: float | None = None  # what the last load of it took
    keep_alive: float | None = None  # how long it stays after its last use, unless a caller says otherwise
    in_bfloat16: Callable[[], int | None] = lambda: None  # the bytes that it would take then, where that is less


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
        budget = "there is no budget" if self.budget_bytes is None else f"the budget is {shown_size(self.budget_bytes)}"
        return (
            f"model {self.name!r} on {self.device}: it needs {shown_size(self.size_bytes)} ({self.known_by}); "
            f"{budget}, {shown_size(self.used_bytes)} in use"
        )

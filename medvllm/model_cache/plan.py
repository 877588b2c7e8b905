"""The plan of a load: what it will take, and which models would be evicted for it."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

from medvllm.quantities import shown_size

Fit = Literal["loaded", "now", "after eviction", "later", "never"]
KnownBy = Literal["measured", "headers", "unknown"]


@dataclass(frozen=True)
class Need:
    """The memory that a load is expected to take.

    Attributes:
        device: The device of the model.
        size_bytes: Bytes that it will take there.
        known_by: How the size is known: "measured" by an earlier load, from the checkpoint's "headers", or "unknown".
        load_s: Seconds that the last load took; None if it is not known.
        keep_alive: Seconds that the model stays after its last use, unless a caller asks for another time.
        in_bfloat16: Returns the bytes that the model would take in bfloat16, if that is less.
        base: The key of an adapter's base, which stays in memory; None for another model.
        dtype: The dtype of the weights in memory.
        stored_dtype: The dtype of the checkpoint; None if it has none.
    """

    device: str = "cpu"
    size_bytes: int = 0
    known_by: KnownBy = "unknown"
    load_s: float | None = None
    keep_alive: float | None = None
    in_bfloat16: Callable[[], int | None] = lambda: None
    base: Hashable | None = None
    dtype: str | None = None
    stored_dtype: str | None = None


@dataclass(frozen=True)
class Leaving:
    """A model that would be evicted, and why it is the one."""

    name: str
    size_bytes: int
    why: str


@dataclass(frozen=True)
class Plan:
    """Whether a model fits on its device, and what would be evicted for it.

    A caller may hold a model without a lease, which cannot be seen in advance. Such a model is evicted like any other,
    and its memory becomes free when the caller drops it.

    Attributes:
        name: The entry's name.
        device: The device of the model.
        fit: "loaded" (it is in memory), "now", "after eviction", "later" (when callers release or drop models), or
            "never" (within this budget).
        size_bytes: Bytes that the model takes.
        known_by: How the size is known: "measured", "headers" or "unknown".
        used_bytes: Bytes of cached models, of models that callers hold, and of loads in progress on that device.
        budget_bytes: The device's budget; None means no limit.
        leaving: The models that would be evicted, in order.
        load_s: Seconds that the last load took; None if it is not known.
        dtype: The dtype of its weights in memory.
        stored_dtype: The dtype of the checkpoint; None if it has none.
    """

    name: str
    device: str
    fit: Fit
    size_bytes: int
    known_by: KnownBy
    used_bytes: int
    budget_bytes: int | None
    leaving: tuple[Leaving, ...]
    load_s: float | None
    dtype: str | None = None
    stored_dtype: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return vars(self) | {"leaving": [vars(model) for model in self.leaving]}

    def __str__(self) -> str:
        budget = "there is no budget" if self.budget_bytes is None else f"the budget is {shown_size(self.budget_bytes)}"
        return (
            f"model {self.name!r} on {self.device}: it needs {shown_size(self.size_bytes)} ({self.known_by}); "
            f"{budget}, {shown_size(self.used_bytes)} in use"
        )

"""The result of loading one model."""

from dataclasses import dataclass
from typing import Any, Literal

LoadedBy = Literal["transformers", "replay", "offload", "adapter", "engine"]


@dataclass(frozen=True)
class LoadResult:
    """A loaded model, its size and how long the load took.

    Attributes:
        model: The model in eval mode: a PreTrainedModel, or whatever the entry's own class makes.
        size_bytes: Bytes of its parameters and buffers; those of an adapter's base count for the base.
        load_s: Seconds that this load took.
        loaded_by: "transformers" for a plain load, "replay" for a rebuild from a template, "offload" for a model
            that was moved back from host memory, "adapter" for an adapter that was put into its base,
            "engine" for a graph that an engine opened.
        mapped_bytes: How many of `size_bytes` belong to a mapped file, which all processes that map it share.
        reload_s: Seconds that the next load is expected to take.
        reload_fallback_reason: Why the next load cannot be a replay and must use transformers; None if it can.
    """

    model: Any
    size_bytes: int
    load_s: float
    loaded_by: LoadedBy
    mapped_bytes: int
    reload_s: float
    reload_fallback_reason: str | None = None

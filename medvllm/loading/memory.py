"""What a model weighs, and how its memory comes back."""

import gc
from dataclasses import dataclass
from typing import Any, Literal

import torch

How = Literal["transformers", "replay"]


@dataclass(frozen=True)
class Loaded:
    """A load's result: the model in eval mode, its weight in bytes and the seconds it took."""

    model: Any  # a PreTrainedModel, or whatever the entry's class makes
    size_bytes: int
    load_s: float
    how: How
    no_recipe: str | None = None  # why the next load of this identity cannot be a replay


def size_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all parameters and buffers; memory that several share counts once."""
    # By tensor: the storage of one that is a view of a mapped file is the whole file.
    sizes = {(t.device, t.data_ptr()): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(sizes.values())


def reclaim() -> None:
    """Give the memory of dropped models back: to Python, and on a GPU to the device."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()

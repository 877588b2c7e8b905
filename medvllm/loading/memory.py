"""What a model weighs, and how its memory comes back."""

import gc
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Loaded:
    """A load's result: the model in eval mode, its weight in bytes and the seconds it took."""

    model: Any  # a PreTrainedModel, or whatever the entry's class makes
    size_bytes: int
    load_s: float


def size_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all parameters and buffers; storage that several share counts once."""
    storages = {
        (tensor.device, tensor.untyped_storage().data_ptr()): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())


def reclaim() -> None:
    """Give the memory of dropped models back: to Python, and on a GPU to the device."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()

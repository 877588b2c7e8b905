"""What a model may need, by the weights that are there: a config alone cannot make a load ask for memory."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import PreTrainedModel

from medvllm.errors import WeightsMismatchError
from medvllm.sources import Snapshot

_FROM_PRETRAINED = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
_COPIES = 4  # a tied weight is made once for each of its names
_PACKED = 16  # numbers that an integer may hold: quantized weights
_MORE = 64 << 20, 1000  # numbers and tensors beside those of the checkpoint: heads, tables of positions


_making = threading.local()  # `.count`: of the model that this thread is making, the innermost of several


@contextmanager
def limit_new_weights(name: str, cls: type[Any], snapshot: Snapshot) -> Iterator[None]:
    """Stop the making of a model that gets far more weights than its checkpoint has, before they take memory.

    transformers makes it without data, and fills what the checkpoint lacks or has in another shape with random numbers.
    A class with a loader of its own may have weights from elsewhere.
    """
    if getattr(cls.from_pretrained, "__func__", None) is not _FROM_PRETRAINED:
        yield
        return
    tensors = [tensor for header in snapshot.headers for tensor in header.values()]
    numbers = sum(math.prod(t["shape"]) * (1 if is_floating(t["dtype"]) else _PACKED) for t in tensors)
    most = _COPIES * numbers + _MORE[0], _COPIES * len(tensors) + _MORE[1]
    made = [0, 0]

    def count(module: torch.nn.Module, part: str, tensor: Any) -> None:
        if tensor is None or not tensor.is_meta or getattr(_making, "count", None) is not count:
            return
        made[0] += tensor.numel()
        made[1] += 1
        if made[0] > most[0] or made[1] > most[1]:
            raise WeightsMismatchError(
                f"The config of model {name!r} describes far more weights than its checkpoint has: "
                f"more than {made[0]:,} numbers in {made[1]:,} tensors, where {numbers:,} in {len(tensors):,} are "
                "stored.\nConfig and weights do not belong together: fetch both from one commit.",
                model=name,
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    outer, _making.count = getattr(_making, "count", None), count
    try:
        yield
    finally:
        _making.count = outer
        for hook in hooks:
            hook.remove()


def is_floating(dtype: str) -> bool:
    """Return whether a dtype, as safetensors names it, is one of floating numbers."""
    return dtype.startswith(("F", "BF"))

"""A bound on new weights: a hostile or wrong config cannot make a load ask for far more memory than its files do."""

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
from medvllm.sources.snapshot import Snapshot

_FROM_PRETRAINED = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
_COPIES = 4  # a tied weight is created once for each of its names
_PACKED = 16  # numbers that one stored integer may hold in a quantized weight
_EXTRA = 64 << 20, 1000  # numbers and tensors that no checkpoint has: heads, position tables
_current = threading.local()  # `.count`: the innermost `count` of the load that this thread is in


@contextmanager
def limit_new_weights(name: str, cls: type[Any], snapshot: Snapshot) -> Iterator[None]:
    """Stop the construction of a model with far more weights than its checkpoint has, before they take memory.

    transformers constructs a model without data. Later it fills the weights that the checkpoint lacks, or has in
    another shape, with random numbers. A class with its own `from_pretrained` has no limit, as its weights may come
    from elsewhere.

    Raises:
        WeightsMismatchError: The limit is exceeded.
    """
    if getattr(cls.from_pretrained, "__func__", None) is not _FROM_PRETRAINED:
        yield
        return
    tensors = [tensor for header in snapshot.headers for tensor in header.values()]
    numbers = sum(math.prod(t["shape"]) * (1 if is_floating(t["dtype"]) else _PACKED) for t in tensors)
    limits = _COPIES * numbers + _EXTRA[0], _COPIES * len(tensors) + _EXTRA[1]
    made = [0, 0]

    def count(module: torch.nn.Module, part: str, tensor: Any) -> None:
        if tensor is None or not tensor.is_meta or getattr(_current, "count", None) is not count:
            return
        made[0] += tensor.numel()
        made[1] += 1
        if made[0] > limits[0] or made[1] > limits[1]:
            raise WeightsMismatchError(
                f"The config of model {name!r} describes far more weights than its checkpoint has: "
                f"more than {made[0]:,} numbers in {made[1]:,} tensors, where {numbers:,} in {len(tensors):,} are "
                "stored.\nThe config and the weights do not belong together. Fetch both from the same commit.",
                model=name,
            )

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    outer, _current.count = getattr(_current, "count", None), count
    try:
        yield
    finally:
        _current.count = outer
        for hook in hooks:
            hook.remove()


def is_floating(dtype: str) -> bool:
    """Return whether a dtype, as safetensors names it, is a floating-point type."""
    return dtype.startswith(("F", "BF"))

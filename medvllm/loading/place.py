"""A model from memory to its device, each piece of memory once."""

from typing import Any

import torch


def place(model: torch.nn.Module, device: torch.device) -> None:
    """Copy the parameters and buffers of a model to a device.

    What several of them share in memory, they share there. To CUDA they go through page-locked memory: of a mapped
    file, the driver would copy at a fraction of the bus's speed. On the CPU of a machine with CUDA they stay in it.
    """
    placed: dict[tuple[Any, ...], torch.Tensor] = {}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if (there := placed.get(_where(tensor))) is None:
            source = tensor.pin_memory() if device.type == "cuda" else tensor
            there = source.to(device, non_blocking=device.type != "cpu", copy=True)
            if device.type == "cpu" and torch.cuda.is_available():
                there = there.pin_memory()
            # Under both: a tied weight is met again after it has moved.
            placed[_where(tensor)] = placed[_where(there)] = there
        return there

    model._apply(copied)  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _where(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

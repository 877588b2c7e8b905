"""Where a model's weights are: on its device, or offloaded to host memory until they are needed again."""

import time
from typing import Any

import torch

from medvllm.errors import DeviceMemoryError
from medvllm.load_result import LoadResult
from medvllm.loading.memory import size_bytes


def copy_to_device(model: torch.nn.Module, device: torch.device) -> None:
    """Copy the parameters and buffers of a model to a device, each piece of memory once.

    Tensors that share memory share it on the device, too. Copies to CUDA go through page-locked memory: from a mapped
    file, the driver would copy at a fraction of the bus's speed. Copies to the CPU of a machine with CUDA stay in it.
    """
    copies: dict[tuple[Any, ...], torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if (copied := copies.get(_key(tensor))) is None:
            source = tensor.pin_memory() if device.type == "cuda" else tensor
            copied = source.to(device, non_blocking=device.type != "cpu", copy=True)
            if device.type == "cpu" and torch.cuda.is_available():
                copied = copied.pin_memory()
            # Under both keys: a tied weight is met again after it has moved.
            copies[_key(tensor)] = copies[_key(copied)] = copied
        return copied

    # A caller's inference mode would mark the weights for every other caller.
    with torch.inference_mode(False):
        model._apply(copy)  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def restore_offloaded(model: Any, name: str, device: str) -> LoadResult:
    """Move an offloaded model back to its device.

    Args:
        model: The model, which nobody else may use.
        name: The entry's name, for errors.
        device: The device.

    Raises:
        DeviceMemoryError: The device does not have enough memory.
    """
    start = time.perf_counter()
    if device != "cpu":
        try:
            copy_to_device(model, torch.device(device))
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise device_memory_error(name, device) from error
    seconds = time.perf_counter() - start
    return LoadResult(model, size_bytes(model), seconds, "offload", mapped_bytes=0, reload_s=seconds)


def device_memory_error(name: str, device: str) -> DeviceMemoryError:
    """Return the error for a model that does not fit into the free memory of a device."""
    return DeviceMemoryError(
        f"Device {device!r} does not have enough free memory for model {name!r}.\n"
        "Free some with registry.clear_cache(), or load the model with dtype='bfloat16'.",
        model=name,
        device=device,
    )


def _key(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

"""A model asleep: its weights in host memory, ready for its device, while the device holds none of them."""

import time
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedConfig

from medvllm.errors import DeviceMemoryError
from medvllm.loading.memory import Loaded, size_bytes
from medvllm.loading.model import load_model
from medvllm.loading.place import place
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity
from medvllm.sources import Snapshot


def rest(metadata: ModelMetadata, identity: Identity, config: PreTrainedConfig, snapshot: Snapshot) -> Loaded:
    """Return the model of an identity for another device, its weights in memory of the host's that no file backs."""
    loaded = load_model(metadata, on_host(identity), config, snapshot)
    _move(loaded.model, identity.name, "cpu")
    return replace(loaded, mapped_bytes=0)


def wake(model: Any, name: str, device: str) -> Loaded:
    """Return a model that was asleep on its device; its weights leave the host's memory."""
    start = time.perf_counter()
    if device != "cpu":
        _move(model, name, device)
    seconds = time.perf_counter() - start
    return Loaded(model, size_bytes(model), seconds, "sleep", 0, seconds)


def _move(model: Any, name: str, device: str) -> None:
    try:
        # A caller's inference mode would mark the weights of everybody for good.
        with torch.inference_mode(False):
            place(model, torch.device(device))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceMemoryError(
            f"Device {device!r} has no room for model {name!r}.", model=name, device=device
        ) from error


def on_host(identity: Identity) -> Identity:
    """Return the identity of the same model on the CPU."""
    return replace(identity, options=replace(identity.options, device="cpu"))

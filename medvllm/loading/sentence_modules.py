"""The modules that follow the pooling in a sentence-transformers folder, with every activation of torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvllm.engines import vector_modules
from medvllm.engines.vector_modules import Activation, Modules
from medvllm.metadata import ModelMetadata
from medvllm.sources.snapshot import Snapshot

if TYPE_CHECKING:
    from medvllm.engines.vector_modules import Vectors

__all__ = ["Modules", "find_activation", "load_modules"]

# These mix the numbers of a vector, or need arguments that no folder gives.
_NO_ACTIVATION = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax", "Threshold"}


def load_modules(metadata: ModelMetadata, snapshot: Snapshot) -> Modules:
    """Return the modules that follow the pooling, as `vector_modules.load_modules` does."""
    return vector_modules.load_modules(metadata, snapshot, find_activation)


def find_activation(name: str) -> Activation | None:
    """Return an activation of torch by the name of its class, or None. No other code is ever imported."""
    cls: Any = getattr(nn, name, None) if name not in _NO_ACTIVATION else None
    if getattr(cls, "__module__", None) != "torch.nn.modules.activation":
        return None
    # Explicitly float32: a load in another thread changes torch's default dtype for the whole process.
    activation: nn.Module = cls().to(torch.float32).eval().requires_grad_(False)

    def build(weights: "Mapping[str, Vectors]") -> Any:
        activation.load_state_dict({key: torch.from_numpy(weight) for key, weight in weights.items()})
        return lambda vectors: activation(torch.from_numpy(vectors)).numpy()

    return Activation(build, {key: tuple(weight.shape) for key, weight in activation.state_dict().items()})

"""Snapshot -> the modules that follow the pooling in a sentence-transformers folder, with their weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medvllm.errors import IncompleteSnapshotError, LoadError, SourceError, WeightsMismatchError
from medvllm.metadata import ModelMetadata
from medvllm.sources import sentence
from medvllm.sources.snapshot import Snapshot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.(?:activation\.|linear\.)?)?(\w+)")
# These mix the numbers of a vector, or need arguments that no folder gives.
_NO_ACTIVATION = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax", "Threshold"}


@dataclass(frozen=True)
class Step:
    """One module: it takes vectors of `size` numbers, or of any size if that is None, and returns vectors."""

    name: str
    size: int | None
    run: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Modules:
    """The modules that pooled vectors go through.

    Attributes:
        steps: The modules, in order.
        is_declared: Whether a sentence-transformers folder declares them.
    """

    steps: tuple[Step, ...] = ()
    is_declared: bool = False

    def run(self, model: str, vectors: "NDArray[np.float32]", *, normalize: bool | None) -> "NDArray[np.float32]":
        """Return the output of the modules for pooled vectors.

        Args:
            model: The entry's name, for errors.
            vectors: Pooled vectors, of shape (texts, numbers).
            normalize: False leaves out a last module that scales to unit length.

        Raises:
            LoadError: A module takes vectors of another size.
        """
        for step in self._choose_steps(normalize):
            if step.size not in (None, vectors.shape[1]):
                raise LoadError(
                    f"Module {step.name!r} of model {model!r} takes vectors of {step.size:,} numbers, but gets "
                    f"{vectors.shape[1]:,}.\nSee which pooling it was made for in {step.name}/config.json.",
                    model=model,
                )
            with torch.inference_mode():
                vectors = step.run(torch.from_numpy(vectors)).numpy()
        return vectors

    def _choose_steps(self, normalize: bool | None) -> tuple[Step, ...]:
        is_last = bool(self.steps) and self.steps[-1].run is _normalize
        return self.steps[:-1] if normalize is False and is_last else self.steps


def load_modules(metadata: ModelMetadata, snapshot: Snapshot) -> Modules:
    """Return the modules that follow the pooling, in float32 on the CPU. A plain model has none.

    Raises:
        LoadError: The folder declares something that is not supported.
        WeightsMismatchError: Weights are missing, have other shapes, or are not used.
        SourceError: A weight file is damaged or missing.
    """
    declared = snapshot.declaration
    if declared is None:
        return Modules()
    if declared.refusal is not None:
        raise _unsupported_error(metadata, declared.refusal)
    return Modules(tuple(_step(metadata, snapshot, module) for module in declared.modules), is_declared=True)


def _step(metadata: ModelMetadata, snapshot: Snapshot, declared: sentence.Module) -> Step:
    if isinstance(declared, sentence.Normalize):
        return Step(declared.path, None, _normalize)
    if isinstance(declared, sentence.LayerNorm):
        shape = (declared.dimension,)
        weights = _weights(metadata, snapshot, declared.path, {"norm.weight": shape, "norm.bias": shape})
        run = partial(
            nn.functional.layer_norm, normalized_shape=shape, weight=weights["norm.weight"], bias=weights["norm.bias"]
        )
        return Step(declared.path, declared.dimension, run)
    return Step(declared.path, declared.in_features, _dense(metadata, snapshot, declared))


def _normalize(vectors: Tensor) -> Tensor:
    return nn.functional.normalize(vectors, dim=1)


def _dense(metadata: ModelMetadata, snapshot: Snapshot, declared: sentence.Dense) -> Callable[[Tensor], Tensor]:
    activation = _activation(metadata, declared)
    own = {f"activation_function.{key}": tuple(weight.shape) for key, weight in activation.state_dict().items()}
    shape = declared.out_features, declared.in_features
    shapes = own | {"linear.weight": shape} | ({"linear.bias": shape[:1]} if declared.bias else {})
    if declared.residual and declared.in_features != declared.out_features:
        shapes["residual.weight"] = shape
    weights = _weights(metadata, snapshot, declared.path, shapes)
    residual = weights.get("residual.weight")
    activation.load_state_dict({key.removeprefix("activation_function."): weights[key] for key in own})

    def run(vectors: Tensor) -> Tensor:
        out: Tensor = activation(nn.functional.linear(vectors, weights["linear.weight"], weights.get("linear.bias")))
        if not declared.residual:
            return out
        return out + (nn.functional.linear(vectors, residual) if residual is not None else vectors)

    return run


def _activation(metadata: ModelMetadata, declared: sentence.Dense) -> nn.Module:
    """Return an activation of torch. No other code is ever imported."""
    named = _ACTIVATION.fullmatch(declared.activation)
    cls: Any = getattr(nn, named[1], None) if named and named[1] not in _NO_ACTIVATION else None
    if cls is not nn.Identity and getattr(cls, "__module__", None) != "torch.nn.modules.activation":
        file = f"{declared.path}/config.json"
        raise _unsupported_error(
            metadata, f"has the activation {declared.activation[:80]!r} in {file}, which medvllm does not support"
        )
    activation: nn.Module = cls()
    # Explicitly float32: a load in another thread changes torch's default dtype for the whole process.
    return activation.to(torch.float32).eval().requires_grad_(False)


def _weights(
    metadata: ModelMetadata, snapshot: Snapshot, folder: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return the weights of a module in float32. Raises WeightsMismatchError unless they have exactly these shapes."""
    name = f"{folder}/model.safetensors"
    if name not in snapshot.files and name not in snapshot.converted:
        raise IncompleteSnapshotError(
            f"{snapshot.path} has no {name}, which its modules.json requires.\nGet it from where the folder is from.",
            path=str(snapshot.path),
            missing=(name,),
        )
    file = snapshot.file(name)
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file} cannot be read as safetensors: {error}.", path=str(file)) from error
    if (flaw := _find_flaw(weights, shapes)) is not None:
        raise WeightsMismatchError(
            f"Module {folder!r} of model {metadata.name!r} {flaw}.\n"
            "The config and the weights do not belong together. Fetch both from the same commit.",
            model=metadata.name,
        )
    return {key: weight.to(torch.float32, copy=True) for key, weight in weights.items()}


def _find_flaw(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return how weights differ from those of a module, or None."""
    if lacking := sorted(shapes.keys() - weights.keys()):
        return f"lacks {lacking[0]!r}"
    if surplus := sorted(weights.keys() - shapes.keys()):
        return f"has {surplus[0][:200]!r}, which it does not use"
    for key, weight in weights.items():
        if weight.shape != shapes[key] or not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            return f"has {key!r} as {kind} {list(weight.shape)}, but its config requires floats {list(shapes[key])}"
    return None


def _unsupported_error(metadata: ModelMetadata, what: str) -> LoadError:
    return LoadError(
        f"Model {metadata.name!r} cannot be used for vectors: its folder {what}.\n"
        f"You can load its transformer alone with: registry.load_model({metadata.name!r})",
        model=metadata.name,
    )

"""Snapshot -> what follows the pooling in a sentence-transformers folder, with its weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medvllm.errors import IncompleteSnapshotError, LoadError, SourceError, WeightsMismatchError
from medvllm.metadata import ModelMetadata
from medvllm.sources import Snapshot, sentence

_ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.(?:activation\.|linear\.)?)?(\w+)")
# They mix the numbers of a vector, or take arguments, which no folder gives.
_NO_ACTIVATION = {"GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax", "Threshold"}


@dataclass(frozen=True)
class Step:
    """One module: vectors of `size` numbers in (any number when None), vectors out."""

    name: str
    size: int | None
    run: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Modules:
    """What becomes of pooled vectors. `is_declared`: a sentence-transformers folder says so; else nothing does."""

    steps: tuple[Step, ...] = ()
    is_declared: bool = False

    def run(self, model: str, vectors: Tensor, *, normalize: bool | None) -> Tensor:
        """Return pooled vectors, of `model`, as the modules make them.

        `normalize` False leaves out a scaling to unit length that comes last. LoadError: a module takes other vectors.
        """
        for step in self._chosen(normalize):
            if step.size not in (None, vectors.shape[1]):
                raise LoadError(
                    f"Module {step.name!r} of model {model!r} takes vectors of {step.size:,} numbers, and gets "
                    f"{vectors.shape[1]:,}.\nSee which pooling it was made for: {step.name}/config.json",
                    model=model,
                )
            vectors = step.run(vectors)
        return vectors

    def _chosen(self, normalize: bool | None) -> tuple[Step, ...]:
        is_last = bool(self.steps) and self.steps[-1].run is _normalized
        return self.steps[:-1] if normalize is False and is_last else self.steps


def load_modules(metadata: ModelMetadata, snapshot: Snapshot) -> Modules:
    """Return what a folder puts behind its pooling, in float32 on the CPU; nothing for a plain model's.

    LoadError: the folder declares what cannot be done. WeightsMismatchError: weights are missing, misshapen or left
    over. SourceError: their file is damaged.
    """
    declared = snapshot.declaration
    if declared is None:
        return Modules()
    if declared.refusal is not None:
        raise _refusal(metadata, declared.refusal)
    return Modules(tuple(_step(metadata, snapshot, module) for module in declared.modules), is_declared=True)


def _step(metadata: ModelMetadata, snapshot: Snapshot, declared: sentence.Module) -> Step:
    if isinstance(declared, sentence.Normalize):
        return Step(declared.path, None, _normalized)
    if isinstance(declared, sentence.LayerNorm):
        shape = (declared.dimension,)
        weights = _weights(metadata, snapshot, declared.path, {"norm.weight": shape, "norm.bias": shape})
        run = partial(
            nn.functional.layer_norm, normalized_shape=shape, weight=weights["norm.weight"], bias=weights["norm.bias"]
        )
        return Step(declared.path, declared.dimension, run)
    return Step(declared.path, declared.in_features, _dense(metadata, snapshot, declared))


def _normalized(vectors: Tensor) -> Tensor:
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
    """Return an activation of torch's; no other code is ever imported."""
    named = _ACTIVATION.fullmatch(declared.activation)
    cls: Any = getattr(nn, named[1], None) if named and named[1] not in _NO_ACTIVATION else None
    if cls is not nn.Identity and getattr(cls, "__module__", None) != "torch.nn.modules.activation":
        file = f"{declared.path}/config.json"
        raise _refusal(
            metadata, f"has the activation {declared.activation[:80]!r} in {file}, which medvllm does not run"
        )
    activation: nn.Module = cls()
    # Said aloud: a load in another thread changes torch's default dtype for the whole process.
    return activation.to(torch.float32).eval().requires_grad_(False)


def _weights(
    metadata: ModelMetadata, snapshot: Snapshot, folder: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Return the weights of a module, as float32; WeightsMismatchError unless they are those of these shapes."""
    name = f"{folder}/model.safetensors"
    if name not in snapshot.files and name not in snapshot.converted:
        raise IncompleteSnapshotError(
            f"{snapshot.path} has no {name}, which its modules.json asks for.\nFetch it from where the folder is from.",
            path=str(snapshot.path),
            missing=(name,),
        )
    file = snapshot.file(name)
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file} cannot be read as safetensors: {error}.", path=str(file)) from error
    if (flaw := _flaw(weights, shapes)) is not None:
        raise WeightsMismatchError(
            f"Module {folder!r} of model {metadata.name!r} {flaw}.\n"
            "Config and weights do not belong together: fetch both from one commit.",
            model=metadata.name,
        )
    return {key: weight.to(torch.float32, copy=True) for key, weight in weights.items()}


def _flaw(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return how weights differ from what a module takes, or None."""
    if lacking := sorted(shapes.keys() - weights.keys()):
        return f"lacks {lacking[0]!r}"
    if surplus := sorted(weights.keys() - shapes.keys()):
        return f"has {surplus[0][:200]!r}, which it does not take"
    for key, weight in weights.items():
        if weight.shape != shapes[key] or not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            return f"has {key!r} as {kind} {list(weight.shape)}, where its config says floats {list(shapes[key])}"
    return None


def _refusal(metadata: ModelMetadata, what: str) -> LoadError:
    return LoadError(
        f"Model {metadata.name!r} gives no vectors: its folder {what}.\n"
        f"Its transformer alone loads with: registry.load_model({metadata.name!r})",
        model=metadata.name,
    )

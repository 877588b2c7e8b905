"""Snapshot -> the modules that follow the pooling in a sentence-transformers folder, with their weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import erf
from typing import TYPE_CHECKING, Any

from medvllm.activations import scale, sigmoid
from medvllm.errors import IncompleteSnapshotError, LoadError, SourceError, WeightsMismatchError
from medvllm.metadata import ModelMetadata
from medvllm.sources import sentence
from medvllm.sources.snapshot import Snapshot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.(?:activation\.|linear\.)?)?(\w+)")
_SMALLEST_VARIANCE = 1e-5


@dataclass(frozen=True)
class Step:
    """One module: it takes vectors of `size` numbers, or of any size if that is None, and returns vectors."""

    name: str
    size: int | None
    run: "Callable[[Vectors], Vectors]"


@dataclass(frozen=True)
class Modules:
    """The modules that pooled vectors go through.

    Attributes:
        steps: The modules, in order.
        is_declared: Whether a sentence-transformers folder declares them.
    """

    steps: tuple[Step, ...] = ()
    is_declared: bool = False

    def run(self, model: str, vectors: "Vectors", *, normalize: bool | None) -> "Vectors":
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
            vectors = step.run(vectors)
        return vectors

    def _choose_steps(self, normalize: bool | None) -> tuple[Step, ...]:
        is_last = bool(self.steps) and self.steps[-1].run is scale
        return self.steps[:-1] if normalize is False and is_last else self.steps


@dataclass(frozen=True)
class Activation:
    """What follows the matrix of a dense layer.

    Attributes:
        shapes: The shapes of its own weights, by name.
        build: Returns the function for these weights.
    """

    build: "Callable[[Mapping[str, Vectors]], Callable[[Vectors], Vectors]]"
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def load_modules(
    metadata: ModelMetadata, snapshot: Snapshot, find_other_activation: Callable[[str], Activation | None]
) -> Modules:
    """Return the modules that follow the pooling. A plain model has none.

    Args:
        metadata: The entry.
        snapshot: The model's files.
        find_other_activation: Returns the activation of torch for the name of its class, if it is not one of those that
            are computed here.

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
    steps = (_step(metadata, snapshot, module, find_other_activation) for module in declared.modules)
    return Modules(tuple(steps), is_declared=True)


def _step(
    metadata: ModelMetadata,
    snapshot: Snapshot,
    declared: sentence.Module,
    find_other_activation: Callable[[str], Activation | None],
) -> Step:
    if isinstance(declared, sentence.Normalize):
        return Step(declared.path, None, scale)
    if isinstance(declared, sentence.LayerNorm):
        shape = (declared.dimension,)
        weights = _weights(metadata, snapshot, declared.path, {"norm.weight": shape, "norm.bias": shape})
        return Step(declared.path, declared.dimension, partial(_run_layer_norm, weights))
    activation = _activation(metadata, declared, find_other_activation)
    return Step(declared.path, declared.in_features, _dense(metadata, snapshot, declared, activation))


def _run_layer_norm(weights: "Mapping[str, Vectors]", vectors: "Vectors") -> "Vectors":
    import numpy as np

    centred = vectors - vectors.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + np.float32(_SMALLEST_VARIANCE))
    out: Vectors = scaled * weights["norm.weight"] + weights["norm.bias"]
    return out


def _dense(
    metadata: ModelMetadata, snapshot: Snapshot, declared: sentence.Dense, activation: Activation
) -> "Callable[[Vectors], Vectors]":
    own = {f"activation_function.{key}": shape for key, shape in activation.shapes.items()}
    shape = declared.out_features, declared.in_features
    shapes = own | {"linear.weight": shape} | ({"linear.bias": shape[:1]} if declared.bias else {})
    if declared.residual and declared.in_features != declared.out_features:
        shapes["residual.weight"] = shape
    weights = _weights(metadata, snapshot, declared.path, shapes)
    residual = weights.get("residual.weight")
    activate = activation.build({key: weights[f"activation_function.{key}"] for key in activation.shapes})

    def run(vectors: "Vectors") -> "Vectors":
        made = vectors @ weights["linear.weight"].T
        out = activate(made + weights["linear.bias"] if declared.bias else made)
        if not declared.residual:
            return out
        return out + (vectors @ residual.T if residual is not None else vectors)

    return run


def _activation(
    metadata: ModelMetadata, declared: sentence.Dense, find_other: Callable[[str], Activation | None]
) -> Activation:
    """Return the activation that a folder names. No code outside of torch is ever imported for it."""
    named = _ACTIVATION.fullmatch(declared.activation)
    if named and (known := _ACTIVATIONS.get(named[1])) is not None:
        return Activation(lambda weights: known)
    if named and (other := find_other(named[1])) is not None:
        return other
    file = f"{declared.path}/config.json"
    raise _unsupported_error(
        metadata, f"has the activation {declared.activation[:80]!r} in {file}, which medvllm does not support"
    )


def _weights(
    metadata: ModelMetadata, snapshot: Snapshot, folder: str, shapes: Mapping[str, tuple[int, ...]]
) -> "dict[str, Vectors]":
    """Return the weights of a module in float32. Raises WeightsMismatchError unless they have exactly these shapes."""
    from safetensors import SafetensorError, deserialize

    name = f"{folder}/model.safetensors"
    if name not in snapshot.files and name not in snapshot.converted:
        raise IncompleteSnapshotError(
            f"{snapshot.path} has no {name}, which its modules.json requires.\nGet it from where the folder is from.",
            path=str(snapshot.path),
            missing=(name,),
        )
    file = snapshot.file(name)
    try:
        stored: dict[str, Any] = dict(deserialize(file.read_bytes()))  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file} cannot be read as safetensors: {error}.", path=str(file)) from error
    if (flaw := _find_flaw(stored, shapes)) is not None:
        raise WeightsMismatchError(
            f"Module {folder!r} of model {metadata.name!r} {flaw}.\n"
            "The config and the weights do not belong together. Fetch both from the same commit.",
            model=metadata.name,
        )
    return {key: _read(weight) for key, weight in stored.items()}


def _read(stored: Mapping[str, Any]) -> "Vectors":
    """Return a stored tensor as an array in float32."""
    import numpy as np

    shape, content = stored["shape"], stored["data"]
    if stored["dtype"] == "BF16":  # the upper half of a float32
        wide = np.frombuffer(content, dtype="<u2").astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return np.frombuffer(content, dtype=_DTYPES[stored["dtype"]]).astype(np.float32).reshape(shape)


def _find_flaw(stored: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return how weights differ from those of a module, or None."""
    if lacking := sorted(shapes.keys() - stored.keys()):
        return f"lacks {lacking[0]!r}"
    if surplus := sorted(stored.keys() - shapes.keys()):
        return f"has {surplus[0][:200]!r}, which it does not use"
    for key, weight in stored.items():
        if tuple(weight["shape"]) != shapes[key] or weight["dtype"] not in (*_DTYPES, "BF16"):
            kind = re.sub(r"^I(?=\d)", "int", str(weight["dtype"]))
            return f"has {key!r} as {kind} {list(weight['shape'])}, but its config requires floats {list(shapes[key])}"
    return None


def _unsupported_error(metadata: ModelMetadata, what: str) -> LoadError:
    return LoadError(
        f"Model {metadata.name!r} cannot be used for vectors: its folder {what}.\n"
        f"You can load its transformer alone with: registry.load_model({metadata.name!r})",
        model=metadata.name,
    )


def _tanh(vectors: "Vectors") -> "Vectors":
    import numpy as np

    return np.tanh(vectors)


def _relu(vectors: "Vectors") -> "Vectors":
    import numpy as np

    return np.maximum(vectors, np.float32(0))


def _gelu(vectors: "Vectors") -> "Vectors":
    import numpy as np

    errors = np.asarray(np.frompyfunc(erf, 1, 1)(vectors / np.sqrt(2)), dtype=np.float32)
    made: Vectors = vectors * np.float32(0.5) * (1 + errors)
    return made


# By the names that torch gives them.
_ACTIVATIONS: "dict[str, Callable[[Vectors], Vectors]]" = {
    "Identity": lambda vectors: vectors,
    "Tanh": _tanh,
    "ReLU": _relu,
    "Sigmoid": sigmoid,
    "SiLU": lambda vectors: vectors * sigmoid(vectors),
    "GELU": _gelu,
}
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}  # besides BF16, which NumPy lacks

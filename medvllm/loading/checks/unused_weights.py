"""Weights of a checkpoint that its model does not use: harmless ones, ones that the entry allows, and the rest."""

import re
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import transformers
from transformers import PreTrainedModel

from medvllm.errors import WeightsMismatchError
from medvllm.loading.meta_model import build_meta_model
from medvllm.metadata import ModelMetadata
from medvllm.sources.snapshot import Snapshot

# Buffers that older versions stored, counters of other tools, and weights of the loss: none affects the outputs.
_IDLE = re.compile(
    r"(^|\.)(position_ids|token_type_ids|num_batches_tracked|(original_)?inv_freq|masked_bias|(cos|sin)_cached|version"
    r"|relative_position_index|_float_tensor|total_ops|total_params)$"
    r"|(^|\.)(loss(_?f(n|unc|ct|unction))?|criterion|class_weights?|pos_weight)(\.|$)"
)
_MASK = re.compile(r"(^|\.)(attn|attention|crossattention)\.bias$")  # a triangular mask of four dimensions
_OLD_HEADS = re.compile(r"(^|\.)(lm_predictions|mask_predictions|seq_relationship|generator_lm_head)\.")
_SCALES = re.compile(
    r"(^|[._])(weight|input|output|scale|act|activation|k|v|q|kv|prob)_(scale|zero_point|zeros)(s|_inv|_2)?(\.|$)"
    r"|(^|[._])scale_(weight|input|inv)(\.|$)|(^|\.)(scales|scale|zeros|zero_points?|qweight|qzeros|g_idx|SCB|amax|absmax)$"
    r"|(weight_packed|weight_shape|global_scale|quant_map|quant_state|nested_absmax|weight_format|_quantizer\.)"
)
_KINDS = {
    re.compile(r"(^|\.)(distance_embedding|rel(ative)?_\w*(pos|bias|attention)\w*)(\.|$)"): (
        "relative positions, which this version of transformers does not compute for it"
    ),
    re.compile(r"(^|\.|_)crf|transitions?(_\w+)?$|transition_matrix|(^|\.)trans_m"): (
        "part of a CRF, with which its authors choose the labels"
    ),
    re.compile(
        r"lora|adapter|lokr|loha|hada_|oft_|vera_|dora|ia3|prompt_(encoder|embedding)|prefix_|base_layer", re.I
    ): ("part of a LoRA or another adapter that was not merged into the weights"),
}


def find_refused(metadata: ModelMetadata, model: Any, unexpected: Iterable[str], snapshot: Snapshot) -> list[str]:
    """Return the unexpected weights that are neither allowed by the entry nor harmless, sorted.

    Buffers are harmless, and so are heads that another class of the same architecture has and this one does not.
    """
    allowed = metadata.behaviour.unused_weights
    left = [key for key in sorted(unexpected) if not any(fnmatchcase(key, pattern) for pattern in allowed)]
    left = [key for key in left if not (_IDLE.search(key) or _OLD_HEADS.search(key) or _is_mask(key, snapshot))]
    if not left:
        return []
    own = {form for key in model.state_dict() for form in _forms(key, model)}
    for cls, config in _siblings(model):
        other = build_meta_model(cls, config)
        heads = {form for key in other.state_dict() for form in _forms(key, other)} - own if other else set()
        left = [key for key in left if heads.isdisjoint(_forms(key, model))]
        if not left:
            break
    return left


def check_scales(metadata: ModelMetadata, model: Any, unexpected: Iterable[str], snapshot: Snapshot) -> None:
    """Raise WeightsMismatchError for unused scales of quantized weights: without them the weights are noise."""
    allowed = metadata.behaviour.unused_weights
    scales = [key for key in sorted(unexpected) if not any(fnmatchcase(key, pattern) for pattern in allowed)]
    scales = [key for key in scales if _SCALES.search(key)]
    if scales:
        raise _error(metadata, model, scales, snapshot, "scales of quantized weights, which are noise without them")


def check_unused(metadata: ModelMetadata, model: Any, unexpected: Iterable[str], snapshot: Snapshot) -> None:
    """Raise WeightsMismatchError for weights that the saved model needs and this one does not use."""
    left = find_refused(metadata, model, unexpected, snapshot)
    if left:
        what = next((what for kind, what in _KINDS.items() if any(kind.search(key) for key in left)), None)
        raise _error(metadata, model, left, snapshot, what)


def shape(key: str, snapshot: Snapshot) -> list[int] | None:
    """Return the shape of a weight in the checkpoint, where its name may have one prefix more or less; or None."""
    for header in snapshot.headers:
        for name, tensor in header.items():
            if name == key or name.endswith(f".{key}") or key.endswith(f".{name}"):
                found: list[int] = tensor["shape"]
                return found
    return None


def _error(
    metadata: ModelMetadata, model: Any, keys: list[str], snapshot: Snapshot, what: str | None
) -> WeightsMismatchError:
    some = ", ".join(f"{key} {shape(key, snapshot) or ''}".strip() for key in keys[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    kind = f". They are {what}" if what else ""
    return WeightsMismatchError(
        f"The checkpoint of {metadata.name!r} has weights that a {type(model).__name__} does not use: "
        f"{some}{more}{kind}.\n"
        "Load it with the class that saved it. If the model is right without them, allow them by name: "
        f"register(…, unused_weights={list(dict.fromkeys(_pattern(key, model) for key in keys))})",
        model=metadata.name,
        unused=tuple(keys),
    )


def _pattern(key: str, model: Any) -> str:
    """Return a glob for a weight and its siblings: up to the first part of its name that the model does not have.

    The encoder's prefix does not count, or the glob for one weight would allow those of the whole encoder.
    """
    parts = key.split(".")
    first = int(parts[0] == model.base_model_prefix and len(parts) > 1)
    module: Any = model.base_model if hasattr(model.base_model, parts[first]) else model
    for i, part in enumerate(parts[first:], first):
        module = getattr(module, part, None)
        if module is None or i == len(parts) - 1:
            stem = "" if i == 0 else "*." if not part.isdigit() else ".".join(parts[:i]) + "."
            return f"{stem}{part}{'' if i == len(parts) - 1 else '.*'}"
    return key


def _is_mask(key: str, snapshot: Snapshot) -> bool:
    return _MASK.search(key) is not None and len(shape(key, snapshot) or ()) == 4


def _forms(key: str, model: Any) -> set[str]:
    """Return the names of a weight that two classes may use for it, without layer numbers and the encoder's prefix."""
    plain = re.sub(r"(?<=\.)\d+(?=\.|$)", "#", key)
    return {plain, plain.removeprefix(f"{model.base_model_prefix}."), plain.removeprefix("model.")}


def _siblings(model: Any) -> Iterator[tuple[type[Any], Any]]:
    """Yield the other classes of a model's architecture, each with a config. Those in its config come first."""
    own = type(model)
    named = [getattr(transformers, str(name), None) for name in model.config.architectures or ()]
    home = next((cls.__module__ for cls in own.__mro__ if _is_library(cls)), None)  # None for a user's own class
    others = vars(sys.modules[home]).values() if home else ()
    found: list[Any] = [cls for cls in (*named, *others) if _is_model(cls) and cls is not own]
    same = [cls for cls in found if cls.config_class is type(model.config)]
    for cls in sorted(dict.fromkeys(same), key=lambda cls: (cls not in named, "ForPreTraining" not in cls.__name__)):
        yield cls, model.config
    for cls in dict.fromkeys(found):
        if cls not in same:
            try:
                yield cls, cls.config_class()
            except Exception:  # a config that needs arguments
                continue


def _is_library(cls: type[Any]) -> bool:
    return cls.__module__.startswith("transformers.models.")


def _is_model(cls: Any) -> bool:
    return (
        isinstance(cls, type)
        and issubclass(cls, PreTrainedModel)
        and cls.config_class is not None
        and not cls.__name__.endswith("PreTrainedModel")
    )

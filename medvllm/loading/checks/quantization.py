"""Quantized checkpoints: read with the method that wrote them, or refused."""

from collections.abc import Iterator, Mapping
from typing import Any

import transformers
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from medvllm.errors import LoadError, WeightsMismatchError
from medvllm.loading.bounds import is_floating
from medvllm.metadata import ModelMetadata
from medvllm.sources.snapshot import Snapshot

_FIELDS = ("quantization_config", "compression_config")  # the second is the older name that compressed-tensors used


def check_method(metadata: ModelMetadata, config: Any) -> None:
    """Raise LoadError if a config declares a quantization that transformers would ignore, and so read noise."""
    for field, declared in _find_declared(config.to_dict()):
        method = declared.get("quant_method") if isinstance(declared, Mapping) else declared
        if isinstance(declared, Mapping) and (declared.get("load_in_8bit") or declared.get("load_in_4bit")):
            method = "bitsandbytes_4bit" if declared.get("load_in_4bit") else "bitsandbytes_8bit"
        if field != _FIELDS[0] or not isinstance(method, str) or method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
            raise _refusal(metadata, field, method)


def is_quantized(config: Mapping[str, Any]) -> bool:
    """Return whether a config declares a quantization."""
    return any(_find_declared(config))


def check_read(metadata: ModelMetadata, model: Any, snapshot: Snapshot) -> None:
    """Raise unless quantized weights were read as such.

    Raises:
        LoadError: The config declares a quantization that was ignored.
        WeightsMismatchError: transformers has read integers or complex numbers as floating-point weights.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    for field, declared in _find_declared(snapshot.config):
        raise _refusal(metadata, field, declared.get("quant_method") if isinstance(declared, Mapping) else declared)
    tensors = ((name, tensor["dtype"]) for header in snapshot.headers for name, tensor in header.items())
    others = {name: dtype for name, dtype in tensors if not is_floating(dtype)}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name, weight in model.named_parameters() if others else ():
        stored = next((key for key in (name, f"{prefix}{name}", name.removeprefix(prefix)) if key in others), None)
        if stored is not None and weight.is_floating_point():
            kind = "complex numbers" if others[stored].startswith("C") else "integers"
            raise WeightsMismatchError(
                f"The checkpoint of {metadata.name!r} has {kind} for {name}, and no quantization_config.\n"
                "The config and the weights do not belong together. Fetch both from the same commit.",
                model=metadata.name,
            )


def _find_declared(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each quantization that a config or one of its parts declares, with the field that declares it."""
    for field, value in config.items():
        if field in _FIELDS and value:
            yield field, value
        elif isinstance(value, Mapping):
            yield from _find_declared(value)


def _refusal(metadata: ModelMetadata, field: str, method: object) -> LoadError:
    return LoadError(
        f"Model {metadata.name!r} is quantized ({field}: {str(method)[:80]!r}), and transformers "
        f"{transformers.__version__} does not support that method: its weights would be noise.\n"
        "Register the checkpoint that it was made from, or one with a supported method, such as compressed-tensors.",
        model=metadata.name,
    )

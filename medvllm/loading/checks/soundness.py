"""Whether a load came out as it should. Another thread that calls `from_pretrained` can spoil it without an error."""

from typing import Any

import torch

from medvllm.errors import LoadError


def unpack_outcome(name: str, cls: type[Any], outcome: Any) -> tuple[Any, Any]:
    """Return the model and the loading info that a `from_pretrained` returned.

    Raises:
        LoadError: A custom class returned something else.
    """
    if not (isinstance(outcome, tuple) and len(outcome) == 2 and isinstance(outcome[0], torch.nn.Module)):
        raise LoadError(f"{cls.__name__}.from_pretrained did not return a model and its loading info.", model=name)
    if issubclass(cls, torch.nn.Module) and not isinstance(outcome[0], cls):
        raise LoadError(f"{cls.__name__}.from_pretrained returned a {type(outcome[0]).__name__}.", model=name)
    return outcome[0], outcome[1]


def find_untied_weight(model: Any) -> str | None:
    """Return the name of a weight that should be tied to another and is not; None if there is none."""
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        if model.get_parameter_or_buffer(target) is not model.get_parameter_or_buffer(source):
            return str(target)
    return None


def find_flaw(model: Any, dtype: torch.dtype) -> str | None:
    """Return what a concurrent load did to a model: a weight without data, of another dtype, or untied; or None."""
    kept_in_fp32 = [
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    ]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            return f"{name} has no data"
    for name, parameter in model.named_parameters():
        if (
            parameter.is_floating_point()
            and parameter.dtype != dtype
            and not any(part in name for part in kept_in_fp32)
        ):
            return f"{name} is {parameter.dtype}, not {dtype}"
    if name := _find_wrong_buffer(model, dtype):
        return f"{name} was computed in another thread's default dtype"
    if target := find_untied_weight(model):
        return f"{target} is not tied"
    return None


def _find_wrong_buffer(model: Any, dtype: torch.dtype) -> str | None:
    """Return the name of a buffer that was computed, not loaded, in a dtype that the load did not ask for; or None.

    Classes outside transformers may compute theirs in any dtype. Scalars are left out: RecurrentGemma has one that is
    always bfloat16.
    """
    for prefix, module in model.named_modules():
        if type(module).__module__.startswith("transformers."):
            for name in module._non_persistent_buffers_set:
                buffer = module._buffers.get(name)
                if buffer is None or not buffer.dim() or not buffer.is_floating_point():
                    continue
                if buffer.dtype not in (dtype, torch.float32):
                    return f"{prefix}.{name}".lstrip(".")
    return None

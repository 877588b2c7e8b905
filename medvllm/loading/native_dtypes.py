"""The dtypes that a processor has instructions for. It computes others by converting them to float32 and back."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

# As `torch.cpu.get_capabilities` names them, on x86 and on ARM. With AVX-512 alone, oneDNN imitates bfloat16.
_INSTRUCTIONS = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "sve_bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "avx_ne_convert", "fp16_arith"),
}


def is_native(dtype: str, processor: Mapping[str, Any] | None = None) -> bool:
    """Return whether a processor computes in a dtype at least as fast as in float32.

    Args:
        dtype: The name of the dtype, such as "bfloat16".
        processor: What a processor can do; None means this one. An older torch does not tell: then it counts as one
            without instructions for 16 bits.
    """
    if dtype not in _INSTRUCTIONS:
        return True
    known = _this_processor() if processor is None else processor
    return any(known.get(instruction) for instruction in _INSTRUCTIONS[dtype])


@cache
def _this_processor() -> Mapping[str, Any]:
    read: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return read()

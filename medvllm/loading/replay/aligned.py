"""Safetensors files whose tensors begin at multiples of 64 bytes, as the tensors that torch allocates do.

For other addresses, kernels may compute in another order, which changes the last bits of an output. The safetensors
library itself aligns no tensor.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medvllm.loading.replay.mapping import ALIGNED, ALIGNMENT, DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_aligned(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write tensors to a safetensors file.

    The format allows no gaps between tensors. Tensors of an odd size, after which the next one is not aligned, come
    last, the largest first: the mapping copies the tensors that follow them.

    Args:
        tensors: Contiguous tensors on the CPU, by name.
        file: The file.

    Raises:
        OSError: The file cannot be written.
    """
    ordered = sorted(tensors.items(), key=lambda item: _rank(item[1]), reverse=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **ALIGNED}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            stream.write(tensor.detach().view(-1).view(torch.uint8).numpy().data)


def _rank(tensor: torch.Tensor) -> float:
    return tensor.nbytes if tensor.nbytes % ALIGNMENT else math.inf

"""How weights lie in a file that is ours: at multiples of 64 bytes, where torch puts its own.

Kernels may take another way through weights that lie elsewhere, and the last bits of an output change with it.
safetensors itself begins wherever its header ends.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medvllm.loading.mapping import ALIGNED, ALIGNMENT, DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write contiguous tensors of the CPU as safetensors. OSError: the file cannot be written.

    The format allows no gaps. Those behind which the next one would not be aligned come last, the largest first: the
    mapping copies what lies behind them.
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

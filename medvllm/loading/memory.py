"""What a model weighs, and how its memory comes back."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Loaded:
    """A load's result: the model in eval mode, its weight in bytes and the seconds it took."""

    model: Any  # a PreTrainedModel, or whatever the entry's class makes
    size_bytes: int
    load_s: float
    by: str = "transformers"  # how the model came to be

    @property
    def reload_s(self) -> float:
        """What loading it again is expected to take."""
        return self.load_s


def size_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all parameters and buffers; storage that several share counts once."""
    storages = {
        (tensor.device, tensor.untyped_storage().data_ptr()): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())


def mapped_bytes(models: Sequence[Any]) -> list[int | None]:
    """Return for each model how many bytes of its weights are a file's, untouched; None where it is not known.

    Such bytes are in memory once, however many processes map them. What was written to is the process's own.
    """
    mappings = _file_mappings()
    return [None if model is None or mappings is None else _mapped(model, mappings) for model in models]


def _mapped(model: torch.nn.Module, mappings: list[tuple[int, int, int]]) -> int:
    """`mappings` are the beginning, the end and the written bytes of each."""
    tensors = (*model.parameters(), *model.buffers())
    spans = {(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in tensors if t.device.type == "cpu"}
    total = 0
    for begin, end, written in mappings:
        inside = sum(max(0, min(end, start + size) - max(begin, start)) for start, size in spans)
        total += max(0, inside - written) if inside else 0
    return total


def _file_mappings() -> list[tuple[int, int, int]] | None:
    """Return the beginning, the end and the written bytes of each file that this process maps; None off Linux."""
    file = Path("/proc/self/smaps")
    if not file.exists():
        return None
    mappings: list[tuple[int, int, int]] = []
    is_file = False
    for line in file.read_text().splitlines():
        if (head := line.split(maxsplit=5)) and "-" in head[0] and not head[0].endswith(":"):
            is_file = len(head) == 6 and head[5].startswith("/")
            begin, _, end = head[0].partition("-")
            if is_file:
                mappings.append((int(begin, 16), int(end, 16), 0))
        elif is_file and line.startswith("Anonymous:"):  # copied on a write; a dirty page may just be a new file's
            begin_at, end_at, _ = mappings[-1]
            mappings[-1] = begin_at, end_at, int(line.split()[1]) * 1024
    return mappings


def reclaim() -> None:
    """Give the memory of dropped models back: to Python, and on a GPU to the device."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()

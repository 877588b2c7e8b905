"""What a model weighs, and how its memory comes back."""

import gc
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

How = Literal["transformers", "replay", "sleep"]


@dataclass(frozen=True)
class Loaded:
    """A load's result: the model in eval mode, its weight in bytes and the seconds it took."""

    model: Any  # a PreTrainedModel, or whatever the entry's class makes
    size_bytes: int
    load_s: float
    how: How
    mapped_bytes: int  # of size_bytes, what is a file's mapping
    reload_s: float  # what loading it again is expected to take
    no_recipe: str | None = None  # why the next load of this identity cannot be a replay


def size_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all parameters and buffers; memory that several share counts once."""
    # By tensor: the storage of one that is a view of a mapped file is the whole file.
    sizes = {(t.device, t.data_ptr()): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(sizes.values())


def mapped_bytes(model: torch.nn.Module) -> int:
    """Return how many bytes of a model's weights are a file's, mapped, and so shared by all who map it; 0 off Linux."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    heads = (line.split(maxsplit=5) for line in lines)
    return sum(_overlaps(model, [_span(head[0]) for head in heads if len(head) == 6 and head[5].startswith("/")]))


def written_bytes(models: Iterable[Any]) -> dict[int, int]:
    """Return by id of a model how many bytes of its mapped weights have become this process's own, by a write."""
    smaps = Path("/proc/self/smaps")
    spans: list[tuple[int, int]] = []
    written: list[int] = []
    is_file = False
    for line in smaps.read_text().splitlines() if smaps.exists() else ():
        if is_file and line.startswith("Anonymous:"):  # "dirty" would count the pages of a new file, too
            written[-1] = int(line.split()[1]) * 1024
        elif not line.partition(" ")[0].endswith(":"):
            head = line.split(maxsplit=5)
            if is_file := len(head) == 6 and head[5].startswith("/"):
                spans.append(_span(head[0]))
                written.append(0)
    found = {}
    for model in models:
        if model is not None:
            shares = zip(_overlaps(model, spans), written, strict=True)
            found[id(model)] = sum(min(inside, own) for inside, own in shares)
    return found


def _overlaps(model: torch.nn.Module, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Return how many bytes of a model's weights lie in each stretch of memory, given by beginning and end."""
    tensors = (*model.parameters(), *model.buffers())
    own = {(t.data_ptr(), t.nbytes) for t in tensors if t.device.type == "cpu"}
    inside = [0] * len(spans)
    ends = [end for _, end in spans]  # in order, as the stretches do not overlap
    for at, size in own:
        for i in range(bisect_right(ends, at), len(spans)):
            begin, end = spans[i]
            if begin >= at + size:
                break
            inside[i] += min(end, at + size) - max(begin, at)
    return inside


def _span(text: str) -> tuple[int, int]:
    begin, _, end = text.partition("-")
    return int(begin, 16), int(end, 16)


def allocated_bytes(device: str) -> int:
    """Return the bytes that torch has allocated on a GPU; 0 elsewhere, where nothing counts them."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def reclaim() -> None:
    """Give the memory of dropped models back: to Python, and on a GPU to the device."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()

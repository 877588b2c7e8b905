"""How much memory a model takes, and how it is freed."""

import gc
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import weakref

_LARGEST_KEPT = (32 << 20) - (1 << 16)  # bytes of a block; glibc's limit with room for its own fields


def size_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of all parameters and buffers. Memory that several of them share counts once."""
    # By tensor, not by storage: the storage of a view of a mapped file is the whole file.
    sizes = {(t.device, t.data_ptr()): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(sizes.values())


def mapped_bytes(model: torch.nn.Module) -> int:
    """Return how many bytes of a model's weights belong to mapped files, which processes share; 0 without /proc."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    heads = (line.split(maxsplit=5) for line in lines)
    return sum(_overlaps(model, [_span(head[0]) for head in heads if len(head) == 6 and head[5].startswith("/")]))


def written_bytes(models: Iterable[Any]) -> dict[int, int]:
    """Return how many bytes of each model's mapped weights were written to, and so copied for this process.

    Returns:
        Bytes by the `id` of a model.
    """
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
    """Return how many bytes of a model's weights lie in each span of addresses, given as begin and end."""
    tensors = (*model.parameters(), *model.buffers())
    own = {(t.data_ptr(), t.nbytes) for t in tensors if t.device.type == "cpu"}
    inside = [0] * len(spans)
    ends = [end for _, end in spans]  # sorted, as the spans do not overlap
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
    """Return the bytes that torch has allocated on a GPU; 0 for other devices."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


def free_memory(evicted: Iterable["weakref.ref[Any]"] = ()) -> None:
    """Give the memory of evicted models back to their devices.

    Python's garbage collector looks at all that is imported, for 150 ms or more. So it runs only if one of the models
    is still in memory: something in it refers to itself, or a caller holds it.
    """
    if any(model() is not None for model in evicted):
        gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 64 MB that tensors have freed, and use it for the next ones.

    Otherwise it gives the end of its memory back to the system as soon as there are a few megabytes, and the system
    clears each page again for the next layer of a model. With glibc that was an eighth of the CPU time of a batch. It
    learns from the largest block that was freed, if it is smaller than 32 MB, and if nobody has set `MALLOC_*`.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8, device="cpu")  # is never written to, so it takes no memory


@contextmanager
def no_collection() -> Iterator[None]:
    """Make objects that stay, without a look of Python's garbage collector at them, or at all that is imported.

    The thousands of objects of a model would make it look at young ones several times, and at all objects after every
    few models. The new objects become old ones at once. Other threads make objects too meanwhile, so a block must be
    short. If the caller has switched the collector off, it stays off.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            # To freeze and unfreeze all objects makes them old, which takes no time. Frozen ones would stay frozen.
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()

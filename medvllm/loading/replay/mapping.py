"""A safetensors file as a private memory mapping: no byte is read before it is used.

Private means copy-on-write: a write to a tensor reaches neither the file nor another mapping of it. Each tensor has a
storage of only its own bytes, so that pickling or keeping one tensor does not take along the whole file.
"""

import ctypes
import json
import mmap
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch

from medvllm.dtypes import SAFETENSORS
from medvllm.errors import SourceError
from medvllm.sources.fingerprint import Stamp, read_stamp

DTYPES = {kind: getattr(torch, name) for kind, (name, _) in SAFETENSORS.items()}
ALIGNMENT = 64  # bytes; torch allocates tensors at multiples of it
ALIGNED = {"alignment": str(ALIGNMENT)}  # the metadata of a file whose tensors must begin at such multiples, too
_PAGEMAP = "/proc/self/pagemap"
_SWAPPED, _OF_FILE = 1 << 62, 1 << 61  # bits of an entry there; bit 63, the sign, is set if the page is in memory
_CPU = torch.device("cpu")
_PAGES = 1 << 14  # that are read together
_MIN_FREED = 1 << 16  # bytes; freeing fewer is not worth a system call
_MADVISE: Any = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_DONTNEED") else None
_DROP = getattr(mmap, "MADV_DONTNEED", 0)
if _MADVISE is not None:
    _MADVISE.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


@dataclass(frozen=True)
class MappedFile:
    """A mapping of a file, and the file's stamp when it was mapped. The mapping lives as long as any of its tensors."""

    path: Path
    stamp: Stamp
    storage: torch.UntypedStorage
    memory: memoryview
    address: int  # where the mapping begins

    def part(self, begin: int, size: int) -> torch.UntypedStorage:
        """Return some of the bytes as a storage of their own. Pages that were written to are freed with it."""
        if not size:
            return torch.UntypedStorage(0)  # type: ignore[no-untyped-call]
        return torch.frombuffer(self._octets(begin, size), dtype=torch.uint8).untyped_storage()

    def vector(self, begin: int, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Return some of the bytes, at least one item, as a tensor of one dimension, on a storage as from `part`."""
        return torch.frombuffer(self._octets(begin, size), dtype=dtype)

    def _octets(self, begin: int, size: int) -> memoryview:
        octets = self.memory[begin : begin + size]
        if size >= _MIN_FREED and _MADVISE is not None:
            first, last = -(-begin // mmap.PAGESIZE), (begin + size) // mmap.PAGESIZE
            if (last - first) * mmap.PAGESIZE >= _MIN_FREED:
                _watch(octets, self.address + first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)
        return octets

    def offset_of(self, storage: torch.UntypedStorage) -> int | None:
        """Return the offset of a storage in the file; None if it is not part of the file."""
        begin = storage.data_ptr() - self.address
        return begin if 0 <= begin < self.stamp[2] and storage.nbytes() else None

    def tensors(self, header: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
        """Return the file's tensors by name, as views; None if torch lacks one of the dtypes.

        Args:
            header: The header that was checked, without its metadata.

        Raises:
            SourceError: The file has another header, so it has changed since.
        """
        length = int.from_bytes(_bytes(self.storage, 0, 8), "little")
        own = json.loads(_bytes(self.storage, 8, min(length, self.stamp[2] - 8)))
        notes = own.pop("__metadata__", None) or {}
        if own != header:
            raise SourceError(
                f"{self.path} changed while it was read.\nTry again when nothing writes to it.", path=str(self.path)
            )
        if any(tensor["dtype"] not in DTYPES for tensor in own.values()):
            return None
        alignment = ALIGNMENT if ALIGNED.items() <= notes.items() else 1
        return {
            name: self._tensor(
                DTYPES[tensor["dtype"]], 8 + length + tensor["data_offsets"][0], tensor["shape"], alignment
            )
            for name, tensor in own.items()
        }

    def _tensor(self, dtype: torch.dtype, begin: int, shape: list[int], alignment: int) -> torch.Tensor:
        if begin % max(dtype.itemsize, alignment):  # a view cannot, or must not, begin there
            octets = _octets(self.storage, begin, dtype.itemsize * torch.Size(shape).numel())
            return octets.clone().view(dtype).view(shape)
        sizes = (max(size, 1) for size in reversed(shape[1:]))
        strides = tuple(accumulate(sizes, mul, initial=1))[::-1] if shape else ()
        size = dtype.itemsize * torch.Size(shape).numel()
        return view(self.part(begin, size), dtype, 0, tuple(shape), strides)

    def has_writes(self) -> bool:
        """Return whether anything was written to the mapping, so that it differs from the file.

        A write through `tensor.data` leaves no other trace than the page that the system then copies.
        """
        first, left = self.address // mmap.PAGESIZE, -(-self.stamp[2] // mmap.PAGESIZE)
        try:
            pages = os.open(_PAGEMAP, os.O_RDONLY)
        except OSError:  # the system has no pagemap: compare the bytes
            whole = _octets(self.storage, 0, self.stamp[2])
            return not torch.equal(whole, _octets(map_file(self.path).storage, 0, self.stamp[2]))
        try:
            for begin in range(0, left, _PAGES):
                entries = os.pread(pages, 8 * min(_PAGES, left - begin), 8 * (first + begin))
                if entries.count(0) != len(entries) and _is_any_copied(entries):
                    return True
        finally:
            os.close(pages)
        return False


class _Pages(weakref.ref[memoryview]):
    """Whole pages of a private mapping. When nothing refers to their bytes any more, copies of them are dropped.

    `weakref.finalize` would do the same, but takes most of the time of making a tensor.
    """

    __slots__ = ("at", "size_bytes")
    __hash__ = object.__hash__  # of the reference itself: a memoryview that is written to has none
    __eq__ = object.__eq__
    at: int
    size_bytes: int


_watched: set[_Pages] = set()  # a weak reference that is itself gone calls nothing


def _watch(octets: memoryview, at: int, size_bytes: int) -> None:
    pages = _Pages(octets, _drop_copies)
    pages.at, pages.size_bytes = at, size_bytes
    _watched.add(pages)


def _drop_copies(pages: Any, watched: set[_Pages] = _watched, madvise: Any = _MADVISE, advice: int = _DROP) -> None:
    # No globals here: they may be gone at the end of the process.
    watched.discard(pages)
    madvise(pages.at, pages.size_bytes, advice)


def map_file(file: Path) -> MappedFile:
    """Map a file. Raises SourceError if it is being replaced."""
    before = read_stamp(file)
    storage: Any = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=before[2])
    if read_stamp(file) != before:
        raise SourceError(f"{file} changed while it was read.\nTry again when nothing writes to it.", path=str(file))
    address = storage.data_ptr()
    array: Any = (ctypes.c_ubyte * before[2]).from_address(address)
    array.storage = storage  # keeps the mapping alive as long as any view of it
    return MappedFile(file, before, storage, memoryview(array).cast("B"), address)


def view(
    storage: torch.UntypedStorage, dtype: torch.dtype, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> torch.Tensor:
    """Return a tensor on a storage, with its own version counter: autograd tells it apart from its neighbours."""
    return torch.empty(0, dtype=dtype, device=_CPU).set_(storage, offset, shape, strides)


def _octets(storage: torch.UntypedStorage, begin: int, size: int) -> torch.Tensor:
    return view(storage, torch.uint8, begin, (size,), (1,))


def _bytes(storage: torch.UntypedStorage, begin: int, size: int) -> bytes:
    return ctypes.string_at(storage.data_ptr() + begin, size)


def _is_any_copied(entries: bytes) -> bool:
    words = torch.frombuffer(bytearray(entries), dtype=torch.int64)
    there = (words < 0) | (words & _SWAPPED != 0)
    return bool((there & (words & _OF_FILE == 0)).any())

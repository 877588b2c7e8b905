"""Weight files of our own: safetensors like any other, and every tensor lies where torch would have put it."""

import math
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from medvllm.loading.replay.aligned import save_aligned
from medvllm.loading.replay.mapping import DTYPES, map_file
from medvllm.sources.safetensors import read_header

SHAPES = st.lists(st.integers(0, 5) | st.sampled_from([8, 16, 32, 33]), max_size=3)
TENSORS = st.lists(st.tuples(st.sampled_from([*DTYPES.values()]), SHAPES), max_size=12)


def tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    """Any bytes, as a tensor; what is no number too."""
    octets = torch.arange(seed, seed + dtype.itemsize * math.prod(shape)) * 37 % (2 if dtype is torch.bool else 256)
    return octets.to(torch.uint8).view(dtype).view(shape) if len(octets) else torch.empty(shape, dtype=dtype)


def octets(any_tensor: torch.Tensor) -> torch.Tensor:
    return any_tensor.contiguous().view(-1).view(torch.uint8)


@settings(max_examples=150, deadline=None)
@given(TENSORS)
def test_every_tensor_is_aligned_and_every_reader_reads_it(kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    """Of any dtype and shape, numbers and empty ones included; the header is as strict readers want it."""
    tensors = {f"layer.{i}.é": tensor(dtype, shape, i) for i, (dtype, shape) in enumerate(kinds)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_aligned(tensors, file)
        header = read_header(file)
        whole = map_file(file)
        views, read = whole.tensors(header), load_file(file)
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["format"] == "pt"
            lazily = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
        begin = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert views is not None and begin % 64 == 0
    assert views.keys() == read.keys() == lazily.keys() == header.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert views[name].data_ptr() % 64 == 0
        for found in (views[name], read[name], lazily[name]):
            assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
            assert torch.equal(octets(found), octets(expected))
    # Only what cannot be a view is none: never the largest, nor what a multiple of 64 bytes takes.
    copied = [view.nbytes for view in views.values() if whole.offset_of(view.untyped_storage()) is None]
    odd = sorted(expected.nbytes for expected in tensors.values() if expected.nbytes % 64)
    assert all(size % 64 or not size for size in copied) and sum(copied) <= sum(odd[:-1])


def test_tensors_keep_their_order_where_they_can() -> None:
    """A model reads its weights in the order in which it uses them."""
    tensors = {f"t{i}": torch.zeros(16 + 48 * (i % 2)) for i in range(8)} | {"odd": torch.zeros(3)}
    with tempfile.TemporaryDirectory() as folder:
        save_aligned({"bias": torch.zeros(5)} | tensors, Path(folder) / "model.safetensors")
        header = read_header(Path(folder) / "model.safetensors")
    assert list(header) == [*(f"t{i}" for i in range(8)), "bias", "odd"]

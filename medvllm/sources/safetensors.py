"""The header of a safetensors file: its tensors, checked against the size of the file before a library parses it."""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from medvllm.dtypes import SAFETENSORS
from medvllm.errors import IncompleteSnapshotError, SourceError
from medvllm.sources.fingerprint import Stamp, read_stamp
from medvllm.sources.os_errors import to_source_error

MAX_HEADER_BYTES = 100_000_000  # the limit of the format

Header = Mapping[str, Any]  # tensor name -> {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}


def cached_header(file: Path) -> Header:
    """Return what `read_header` does. A file that has not changed is not read again."""
    return _cached_header(file, read_stamp(file))


def read_header(file: Path) -> Header:
    """Return the tensors that a safetensors file describes.

    Raises:
        IncompleteSnapshotError: The file is shorter or longer than its header says, or is a pointer of Git LFS.
        SourceError: The header is damaged: tensors overlap, leave gaps, or do not fit their shape and dtype.
    """
    size = file.stat().st_size
    if size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
        raise IncompleteSnapshotError(
            f"{file} is a pointer of Git LFS, not the weights.\nFetch them with: git lfs pull", path=str(file)
        )
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
            text = stream.read(length) if length <= min(MAX_HEADER_BYTES, size - 8) else b"null"
        tensors, _ = parse_header(text)
        end = _check_offsets(tensors.values())
    except OSError as error:
        raise to_source_error(error, file) from error
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise SourceError(
            f"{file} is not a valid safetensors file: its header cannot be read.", path=str(file)
        ) from error
    if 8 + length + end != size:
        raise IncompleteSnapshotError(
            f"{file} is {'cut short' if size < 8 + length + end else 'too long'}: "
            f"it has {size:,} bytes, but its header describes {8 + length + end:,}.",
            path=str(file),
        )
    return tensors


def parse_header(text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors and the metadata of a header.

    Raises:
        ValueError: The text is not a JSON object, has a key twice, or has metadata that are not texts.
    """
    header: Any = json.loads(text.decode(), object_pairs_hook=_refuse_duplicates)
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")
    metadata = header.pop("__metadata__", None) or {}  # some writers store null
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("the metadata are not texts")
    return header, metadata


@lru_cache(maxsize=128)
def _cached_header(file: Path, stamp: Stamp) -> Header:
    return read_header(file)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _check_offsets(tensors: Iterable[Mapping[str, Any]]) -> int:
    """Return the offset behind the last byte.

    Raise ValueError unless each tensor follows the one before, and has the bytes that its shape and dtype need.
    """
    reached = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor["data_offsets"]):
        (begin, end), shape = tensor["data_offsets"], tensor["shape"]
        if {type(number) for number in (begin, end, *shape)} != {int} or min(shape, default=0) < 0:
            raise ValueError("offsets or shape are not whole numbers")
        _, item_bytes = SAFETENSORS.get(tensor["dtype"], (None, None))  # of an unknown dtype, only the order is checked
        if not reached == begin <= end or (item_bytes is not None and end - begin != item_bytes * math.prod(shape)):
            raise ValueError("offsets and shape disagree")
        reached = end
    return reached

"""Tensors of the Open Inference Protocol, as JSON or as raw bytes behind the JSON of a message."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from medvllm.server.problem import Problem, ProblemError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Datatype = Literal["BYTES", "FP32"]

_LENGTH = struct.Struct("<I")  # of an element of a BYTES tensor
MAX_DIMENSIONS = 2


@dataclass(frozen=True)
class TensorSpec:
    """What a model's metadata says of a tensor.

    Attributes:
        name: The name.
        datatype: "BYTES" for texts in UTF-8, or "FP32".
        shape: The size of each dimension, -1 for one that differs between requests.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record for the metadata."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Texts:
    """A BYTES tensor.

    Attributes:
        shape: The size of each dimension.
        values: The texts, in row-major order.
    """

    shape: tuple[int, ...]
    values: list[str]

    def to_json(self) -> list[Any]:
        """Return the elements in row-major order, for JSON."""
        return self.values

    def to_bytes(self) -> bytes:
        """Return each element as its length, 4 bytes with the lowest first, and its UTF-8."""
        encoded = [value.encode() for value in self.values]
        return b"".join(part for value in encoded for part in (_LENGTH.pack(len(value)), value))


class Numbers:
    """An FP32 tensor.

    Args:
        array: The numbers, of any shape.
    """

    def __init__(self, array: "NDArray[np.float32]") -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape

    def to_json(self) -> list[Any]:
        """Return the elements in row-major order, for JSON."""
        numbers: list[Any] = self._array.ravel().tolist()
        return numbers

    def to_bytes(self) -> bytes:
        """Return the elements as little-endian float32, in row-major order."""
        return self._array.astype("<f4").tobytes()


def texts_from_json(name: str, shape: Sequence[int], data: Any) -> Texts:
    """Return the texts of a tensor whose elements are in the JSON, in one list or in lists as the shape nests them.

    Raises:
        ProblemError: The elements are no texts, or are not as many as the shape says.
    """
    is_nested = any(isinstance(item, list) for item in data)
    values = _flatten(name, tuple(shape), data) if is_nested else data
    if not all(isinstance(value, str) for value in values):
        raise invalid(f"Input {name!r} has an element that is not a text.")
    return _checked(name, shape, values)


def texts_from_bytes(name: str, shape: Sequence[int], data: memoryview) -> Texts:
    """Return the texts of a tensor from its raw bytes.

    Raises:
        ProblemError: The bytes are not whole elements, not UTF-8, or not as many as the shape says.
    """
    values: list[str] = []
    place, size = 0, len(data)
    while place < size:
        start = place + _LENGTH.size
        length = _LENGTH.unpack_from(data, place)[0] if start <= size else size
        if (place := start + length) > size:
            raise invalid(f"The bytes of input {name!r} end within element {len(values)}.")
        try:
            values.append(str(data[start:place], "utf-8"))
        except UnicodeDecodeError:
            raise invalid(f"Element {len(values)} of input {name!r} is not UTF-8.") from None
    return _checked(name, shape, values)


def invalid(message: str, param: str | None = None) -> ProblemError:
    """Return the error of a request that the protocol does not allow."""
    return ProblemError(Problem(400, "invalid_request", message, param))


def _flatten(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    if not shape:
        return [data]
    if not isinstance(data, list) or len(data) != shape[0]:
        raise invalid(f"The lists of input {name!r} do not have its shape.")
    return [value for item in data for value in _flatten(name, shape[1:], item)]


def _checked(name: str, shape: Sequence[int], values: list[str]) -> Texts:
    if len(values) != prod(shape):
        raise invalid(f"Input {name!r} has shape {list(shape)} and {len(values)} elements.")
    return Texts(tuple(shape), values)

"""Refuses answers that contain NaN or infinity."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from medvllm.errors import LoadError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np


def is_finite(numbers: "np.ndarray[Any, Any]") -> bool:
    """Return whether an array contains neither NaN nor infinity."""
    import numpy as np

    return bool(np.isfinite(numbers).all())


def nonfinite_positions(values: "np.ndarray[Any, Any]", positions: Sequence[int]) -> set[int]:
    """Return the positions of the texts whose rows in an answer contain NaN or infinity."""
    import numpy as np

    finite = np.atleast_1d(np.isfinite(values).all(tuple(range(1, values.ndim))))
    return {position for position, is_finite in zip(positions, finite.tolist(), strict=True) if not is_finite}


def check_finite(lease: Lease, nonfinite: Collection[int]) -> None:
    """Raise LoadError for the first text whose answer contains NaN or infinity, if there is any."""
    if nonfinite:
        position = min(nonfinite)
        raise LoadError(
            f"Model {lease.metadata.name!r} gives NaN or infinity for text {position + 1}, so there is no answer.\n"
            "In float16 large numbers overflow; load it with: dtype='float32'\n"
            "If it happens in float32 too, the weights are damaged.",
            model=lease.metadata.name,
            position=position,
        )

"""Trials of a model on a short text of medvllm's own. Their outcome is kept for every caller."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROBE = "Patient denies chest pain; ALS was ruled out on 3 May."

# Relative differences that rounding causes, by dtype; a model that mixes up tokens causes larger ones. Inputs of one
# shape are mostly rounded alike.
_ROUNDING = {
    "one shape": {"float64": 1e-5, "float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-3},
    "other shapes": {"float64": 2e-5, "float32": 2e-5, "float16": 1e-2, "bfloat16": 5e-2},
}
Shapes = Literal["one shape", "other shapes"]


@contextmanager
def without_callers_settings(lease: Lease) -> "Iterator[None]":
    """Run a block as in a new thread: without the autocast and the default device of the caller's thread."""
    import torch

    device = lease.model.device
    with torch.autocast(device.type, enabled=False), torch.device(device):
        yield


def differs_by_rounding(
    lease: Lease, found: "NDArray[np.float32]", expected: "NDArray[np.float32]", shapes: Shapes
) -> bool | None:
    """Return whether the numbers of two trials differ by rounding only; None if there is NaN in them.

    Each token counts: a model may mix up only the last one.

    Args:
        lease: The model in use.
        found: The numbers of the tokens, of shape [tokens, size] or [size].
        expected: What they should be, of the same shape.
        shapes: Whether the inputs of the two trials have one shape.
    """
    import numpy as np

    with np.errstate(invalid="ignore", divide="ignore"):
        errors: Any = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    error = float(errors.max())
    if np.isnan(error):
        return None
    known = _ROUNDING[shapes]
    return error <= known.get(str(lease.model.dtype).removeprefix("torch."), max(known.values()))

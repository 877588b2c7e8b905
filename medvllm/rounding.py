"""Whether numbers that a model made twice differ by rounding only, and the short text for such trials."""

from typing import TYPE_CHECKING, Any, Literal

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


def differs_by_rounding(
    dtype: object, found: "NDArray[np.float32]", expected: "NDArray[np.float32]", shapes: Shapes
) -> bool | None:
    """Return whether the numbers of two trials differ by rounding only; None if there is NaN in them.

    Each token counts: a model may mix up only the last one.

    Args:
        dtype: The dtype that the model computes in, such as torch.float32.
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
    return error <= known.get(str(dtype).removeprefix("torch."), max(known.values()))

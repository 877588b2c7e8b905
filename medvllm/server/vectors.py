"""Vectors as protocols want them."""

from typing import TYPE_CHECKING

from medvllm.activations import scale
from medvllm.server.problem import Problem, ProblemError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def shorten(vectors: "NDArray[np.float32]", size: int | None, model: str) -> "NDArray[np.float32]":
    """Return the first numbers of each vector, scaled to length 1 as OpenAI does.

    Args:
        vectors: The vectors, of shape [texts, size].
        size: How many numbers are wanted. With None, or their own size, vectors stay as they are.
        model: The name of their model.

    Raises:
        ProblemError: The vectors are shorter.
    """
    own = vectors.shape[1]
    if size is None or size == own:
        return vectors
    if size > own:
        message = f"Model {model!r} makes vectors of {own} numbers, so dimensions cannot be {size}."
        raise ProblemError(Problem(422, "too_many_dimensions", message, "dimensions"))
    return scale(vectors[:, :size])

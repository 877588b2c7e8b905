"""How vectors are compared."""

from typing import TYPE_CHECKING, Literal

from medvllm.activations import scale
from medvllm.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

_CHUNK = 1_000_000  # numbers that a comparison by distance holds at once


def compare(
    vectors: "NDArray[np.float32]", others: "NDArray[np.float32]", similarity: Similarity
) -> "NDArray[np.float32]":
    """Return the similarity of each vector to each other one, as sentence-transformers defines it: more is closer.

    Args:
        vectors: An array of shape [n, size].
        others: An array of shape [m, size].
        similarity: "cosine", "dot", or the negative distance: "euclidean" or "manhattan".

    Returns:
        An array of shape [n, m], float32.

    Raises:
        RequestError: The vectors have different sizes.
    """
    import numpy as np

    if vectors.shape[1] != others.shape[1]:
        raise RequestError(
            f"Vectors of {vectors.shape[1]:,} numbers cannot be compared with vectors of {others.shape[1]:,}.\n"
            "Make both with the same model, or with the two encoders of one search."
        )
    if similarity == "dot":
        return vectors @ others.T
    if similarity == "cosine":
        return scale(vectors) @ scale(others).T
    distances = np.zeros((len(vectors), len(others)), dtype=np.float32)
    step = max(1, _CHUNK // max(others.size, 1))
    for start in range(0, len(vectors), step):
        differences = vectors[start : start + step, None] - others[None]
        kind = 1 if similarity == "manhattan" else 2
        distances[start : start + step] = np.linalg.norm(differences, ord=kind, axis=2)
    return -distances

"""Functions of NumPy arrays that models end with."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SMALLEST_NORM = 1e-12


def sigmoid(logits: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return a probability for each logit."""
    import numpy as np

    powers = np.exp(-np.abs(logits))  # never more than 1
    scores: NDArray[np.float32] = np.exp(np.minimum(logits, 0))
    scores /= 1 + powers
    return scores


def softmax(logits: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return probabilities that add up to 1 in each row, for logits of shape [..., classes]."""
    import numpy as np

    with np.errstate(invalid="ignore"):  # of an infinite logit, the scores are NaN
        powers = np.exp(logits - logits.max(-1, keepdims=True))
    scores: NDArray[np.float32] = powers / powers.sum(-1, keepdims=True)
    return scores


def scale(vectors: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return vectors scaled to unit length. A vector of zeros stays one."""
    import numpy as np

    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SMALLEST_NORM)
    return scaled

"""Turns logits into scores."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def softmax(logits: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return probabilities that add up to 1 in each row, for logits of shape [..., classes]."""
    import numpy as np

    with np.errstate(invalid="ignore"):  # of an infinite logit, the scores are NaN
        powers = np.exp(logits - logits.max(-1, keepdims=True))
    scores: NDArray[np.float32] = powers / powers.sum(-1, keepdims=True)
    return scores


def sigmoid(logits: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return a probability for each logit."""
    import numpy as np

    powers = np.exp(-np.abs(logits))  # never more than 1
    scores: NDArray[np.float32] = np.exp(np.minimum(logits, 0))
    scores /= 1 + powers
    return scores

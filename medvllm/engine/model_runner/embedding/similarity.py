"""How vectors are compared, and the texts that a search finds by it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.results import Cell, Result
from medvllm.errors import RequestError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

_CHUNK = 1_000_000  # numbers that a comparison by distance holds at once
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Hit:
    """A text that a search found.

    Attributes:
        index: Its position among the caller's texts, from 0.
        score: Its similarity to the query.
        coverage: What the model read of it.
    """

    index: int
    score: float
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the text, for JSON."""
        return self.coverage.to_dict() | {"index": self.index, "score": self.score}


class SearchResults(Result, list[Hit]):
    """The texts that are most similar to a query, the best first."""

    columns: ClassVar[tuple[str, ...]] = ("text", "score")
    task = "search"

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each text, the best first."""
        for hit in self:
            yield hit.index + 1, hit.score

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [hit.to_dict() for hit in self]


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
        return _scale(vectors) @ _scale(others).T
    distances = np.zeros((len(vectors), len(others)), dtype=np.float32)
    step = max(1, _CHUNK // max(others.size, 1))
    for start in range(0, len(vectors), step):
        differences = vectors[start : start + step, None] - others[None]
        kind = 1 if similarity == "manhattan" else 2
        distances[start : start + step] = np.linalg.norm(differences, ord=kind, axis=2)
    return -distances


def _scale(vectors: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return vectors scaled to unit length. A vector of zeros stays one."""
    import numpy as np

    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SMALLEST_NORM)
    return scaled

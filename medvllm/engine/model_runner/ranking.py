"""Texts in the order of their scores for a query, as `rerank` and `search` return them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.results import Cell, Result


@dataclass(frozen=True)
class RankedText:
    """A text with its score for a query.

    Attributes:
        index: Its position among the caller's texts, from 0.
        score: How well it answers the query, or how similar it is: the higher, the better.
        coverage: What the model read of it.
    """

    index: int
    score: float
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the text, for JSON."""
        return self.coverage.to_dict() | {"index": self.index, "score": self.score}


class Ranking(Result, list[RankedText]):
    """Texts, the best first."""

    columns: ClassVar[tuple[str, ...]] = ("text", "score")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each text, the best first."""
        for text in self:
            yield text.index + 1, text.score

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [text.to_dict() for text in self]

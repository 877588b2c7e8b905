"""What every result of a task has in common."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

Cell = int | float | str | list[float]


class Result(Protocol):
    """The answers of a model for all texts of a call."""

    columns: ClassVar[tuple[str, ...]]  # the headings of `rows`

    def rows(self, texts: Sequence[Any]) -> Iterator[tuple[Cell, ...]]:
        """Yield the rows of a table. `texts` are the inputs; texts and gaps are numbered from 1."""
        ...

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        ...

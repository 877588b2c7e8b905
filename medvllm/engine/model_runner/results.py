"""What every result of a task has in common."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from medvllm.errors import MissingDependencyError
from medvllm.receipt import Receipt

if TYPE_CHECKING:
    import pandas

Cell = int | float | str | list[float] | None

_SHOWN_ROWS = 10
_SHOWN_WIDTH = 60


class Result:
    """The answers of a model for all texts of a call.

    Attributes:
        columns: The names of the columns of `rows`.
        task: The task that ran.
        version: The version of the entry that answered.
        receipt: What exactly answered; None if it was not asked for.
    """

    columns: ClassVar[tuple[str, ...]]
    task: str = ""
    version: int | None = None
    receipt: Receipt | None = None

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield the rows of a table. Texts are numbered from 1."""
        raise NotImplementedError

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        raise NotImplementedError

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the rows as a pandas DataFrame.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise MissingDependencyError(
                "A table needs pandas.\nInstall it with: pip install pandas", package="pandas"
            ) from error
        return DataFrame(list(self.rows()), columns=list(self.columns))

    def __repr__(self) -> str:
        rows = list(islice(self.rows(), _SHOWN_ROWS + 1))
        lines = [" ".join(self.columns), *(" ".join(map(_shorten, row)) for row in rows[:_SHOWN_ROWS])]
        return "\n".join([f"<{type(self).__name__}>", *lines, *["…"] * (len(rows) > _SHOWN_ROWS)])


def _shorten(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.4f}"
    if isinstance(cell, list):
        return f"[{' '.join(f'{number:+.3f}' for number in cell[:4])} …]"
    text = repr(cell) if isinstance(cell, str) else str(cell)
    return text if len(text) <= _SHOWN_WIDTH else text[: _SHOWN_WIDTH - 1] + "…"

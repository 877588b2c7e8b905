"""What is written for a chunk of a corpus."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Answers(Protocol):
    """The answers for a chunk of a corpus.

    Attributes:
        task: The task that ran.
    """

    task: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of `rows`."""
        ...

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table; the first cell is the id or the number of the text."""
        ...

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one record for each text, for JSON."""
        ...

    def texts(self) -> Sequence[str]:
        """Return the text that answers each text. RequestError: the task answers with something else."""
        ...

    def vectors(self) -> "NDArray[np.float32]":
        """Return the vectors, of shape [texts, size]. RequestError: the task answers with something else."""
        ...

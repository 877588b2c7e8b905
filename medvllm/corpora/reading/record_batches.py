"""Makes rows of Arrow's batches of records."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.rows import BadRow, Row, row_or_bad
from medvllm.errors import RequestError

BATCH_ROWS = 256


def read_batches(
    names: Sequence[str],
    open_batches: Callable[[list[str]], Iterator[Any]],
    where: str,
    columns: Columns,
    damaged: RequestError,
) -> Iterator[Row | BadRow]:
    """Yield the rows of a table. Only one batch of them is in memory.

    Args:
        names: The names of all columns.
        open_batches: Returns the batches of some columns.
        where: What is read, for messages.
        columns: The columns to read.
        damaged: The error for a table whose next batch cannot be read.

    Raises:
        RequestError: It is damaged, or has other columns.
    """
    found = columns.find(names, where)
    wanted = [*found.texts, *([found.id] if found.id is not None else []), *found.extra]
    batches = open_batches([*dict.fromkeys(wanted)])
    number = 0
    while (records := _next_records(batches, damaged)) is not None:
        for record in records:
            number += 1
            yield row_or_bad(found.make_row, record, place=f"row {number} of {where}")


def _next_records(batches: Iterator[Any], damaged: RequestError) -> list[dict[str, Any]] | None:
    """Return the next records, or None at the end."""
    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except (ValueError, OSError):
        pass
    raise damaged  # raised here, not in the handler: that error may hold a text

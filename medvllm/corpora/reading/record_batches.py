"""Makes rows of Arrow's batches of records."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.rows import BadRow, Row, row_or_bad
from medvllm.errors import MedVLLMError, RequestError

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
    while (batch := _next_batch(batches, damaged)) is not None:
        records = _records_of(batch)
        for at in range(batch.num_rows):
            number += 1
            place = f"row {number} of {where}"
            if records is None:
                yield row_or_bad(_make_row, batch, at, found, place=place)
            else:
                yield row_or_bad(found.make_row, records[at], place=place)


def is_of_disk(error: Exception) -> bool:
    """Return whether an error is one of reading, and not of what was read: Arrow's own ones have no number."""
    return isinstance(error, OSError) and error.errno is not None


def _next_batch(batches: Iterator[Any], damaged: RequestError) -> Any:
    """Return the next batch, or None at the end."""
    try:
        return next(batches, None)
    except MedVLLMError:  # of a URL
        raise
    except (ValueError, OSError) as error:
        if is_of_disk(error):
            raise
    raise damaged  # raised here, not in the handler: that error may hold a text


def _records_of(batch: Any) -> list[dict[str, Any]] | None:
    """Return the records of a batch; None if Python cannot hold one of its values."""
    with suppress(ValueError, OverflowError):
        return batch.to_pylist()  # type: ignore[no-any-return]
    return None


def _make_row(batch: Any, at: int, columns: Columns, place: str) -> Row:
    return columns.make_row({name: _cell(batch[name][at], name, place) for name in batch.schema.names}, place)


def _cell(scalar: Any, column: str, place: str) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        what = "bytes that are not UTF-8"
    except (ValueError, OverflowError):
        what = f"a {scalar.type} that Python cannot hold"
    # Raised here, not in the handler: that error holds the text.
    raise RequestError(f"Column {column!r} holds {what} in {place}.\nWrite it again as text.")

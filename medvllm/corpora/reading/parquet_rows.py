"""Reads Parquet files."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from medvllm.corpora.parquet import import_parquet
from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.rows import BadRow, Row, row_or_bad
from medvllm.errors import RequestError

_BATCH_ROWS = 256
_SIGN = b"PAR1"


def count_parquet_rows(stream: BinaryIO, where: str) -> int:
    """Return the number of rows of a file."""
    return int(_open(stream, where).metadata.num_rows)


def read_parquet(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield the rows of a file. Only some of them are in memory.

    Raises:
        RequestError: It is not a Parquet file, is damaged, or has other columns.
    """
    file = _open(stream, where)
    found = columns.find(list(file.schema_arrow.names), where)
    wanted = [*dict.fromkeys([*found.texts, *([found.id] if found.id is not None else []), *found.extra])]
    batches = file.iter_batches(_BATCH_ROWS, columns=wanted)
    number = 0
    while (records := _next_records(batches, where)) is not None:
        for record in records:
            number += 1
            yield row_or_bad(found.make_row, record, place=f"row {number} of {where}")


def _open(stream: BinaryIO, where: str) -> Any:
    parquet = import_parquet()
    stream.seek(0)
    if stream.read(len(_SIGN)) != _SIGN:
        raise RequestError(f"{where[:1].upper()}{where[1:]} is no Parquet file.\nName it by what it is, such as .csv.")
    stream.seek(0)
    try:
        return parquet.ParquetFile(stream)
    except (ValueError, OSError):
        pass
    raise _damaged(where)


def _next_records(batches: Any, where: str) -> list[dict[str, Any]] | None:
    """Return the next records, or None at the end."""
    try:
        batch = next(batches, None)
        return None if batch is None else batch.to_pylist()
    except (ValueError, OSError):
        pass
    raise _damaged(where)  # raised here, not in the handler: that error may hold a text


def _damaged(where: str) -> RequestError:
    return RequestError(f"{where[:1].upper()}{where[1:]} cannot be read as Parquet: it is damaged.\nCopy it again.")

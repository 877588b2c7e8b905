"""Reads Parquet files."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from medvllm.corpora.parquet import import_parquet
from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.record_batches import BATCH_ROWS, is_of_disk, read_batches
from medvllm.corpora.rows import BadRow, Row
from medvllm.errors import MedVLLMError, RequestError

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

    def open_batches(wanted: list[str]) -> Iterator[Any]:
        return iter(file.iter_batches(BATCH_ROWS, columns=wanted))

    return read_batches(list(file.schema_arrow.names), open_batches, where, columns, _damaged(where))


def _open(stream: BinaryIO, where: str) -> Any:
    parquet = import_parquet()
    stream.seek(0)
    if stream.read(len(_SIGN)) != _SIGN:
        raise RequestError(f"{where[:1].upper()}{where[1:]} is no Parquet file.\nName it by what it is, such as .csv.")
    stream.seek(0)
    try:
        return parquet.ParquetFile(stream)
    except MedVLLMError:  # of a URL
        raise
    except (ValueError, OSError) as error:
        if is_of_disk(error):
            raise
    raise _damaged(where)


def _damaged(where: str) -> RequestError:
    return RequestError(f"{where[:1].upper()}{where[1:]} cannot be read as Parquet: it is damaged.\nCopy it again.")

"""A corpus: rows with texts from a file, a folder, standard input or a list."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.csv_rows import read_csv, read_tsv
from medvllm.corpora.reading.json_rows import read_json_lines, read_json_list
from medvllm.corpora.reading.lines import read_text_lines, split_pair
from medvllm.corpora.reading.notes import find_notes, read_notes
from medvllm.corpora.reading.parquet_rows import count_parquet_rows, read_parquet
from medvllm.corpora.rows import Row
from medvllm.errors import MedVLLMError, RequestError

STANDARD_INPUT = Path("-")

_Reader = Callable[[BinaryIO, str, Columns], Iterator[Row]]
_READERS: dict[str, _Reader] = {
    "lines": read_text_lines,
    "jsonl": read_json_lines,
    "json": read_json_list,
    "csv": read_csv,
    "tsv": read_tsv,
}
FORMATS = (*_READERS, "parquet")
_ENDINGS = {".ndjson": "jsonl", ".tab": "tsv", ".psv": "csv"} | {
    f".{name}": name for name in FORMATS if name != "lines"
}


class Corpus:
    """The rows of a corpus, to be read once.

    Attributes:
        total: How much there is to read, in bytes or in rows; None if nobody knows.
    """

    def __init__(self, rows: Iterator[Row], total: int | None, tell: Callable[[], int] | None = None) -> None:
        self._rows, self.total, self._tell, self._count = rows, total, tell, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self._count += 1
            yield row

    @property
    def done(self) -> int:
        """How much was read, in the unit of `total`."""
        return self._tell() if self._tell else self._count


def corpus_of(texts: Sequence[str], columns: Columns) -> Corpus:
    """Return a corpus of texts that are in memory. If `columns` are a pair, a tab separates the two texts of each."""
    _check_no_columns(Columns(extra=columns.extra), "What is typed")
    rows = (
        Row(split_pair(text, columns, place) if columns.is_pair else text, place)
        for text, place in ((text, f"text {number}") for number, text in enumerate(texts, 1))
    )
    return Corpus(rows, len(texts))


@contextmanager
def open_corpus(source: Path, columns: Columns, format: str | None = None) -> Iterator[Corpus]:
    """Open a file or a folder for reading.

    Args:
        source: A file, a folder of notes, or `-` for standard input.
        columns: The columns to read, where the format has columns.
        format: One of FORMATS; by default, the ending of the file's name decides, and other files have one text a line.

    Raises:
        RequestError: It cannot be opened or read; also while it is read.
    """
    if source != STANDARD_INPUT and source.is_dir():
        _check_no_columns(columns, f"Each file of folder {str(source)!r} is one text. It")
        names = find_notes(source)
        yield Corpus(read_notes(source, names), len(names))
        return
    where = "standard input" if source == STANDARD_INPUT else repr(str(source))
    chosen = format or _ENDINGS.get(source.suffix.lower(), "lines")
    if chosen == "lines":
        _check_no_columns(columns, f"{where[:1].upper()}{where[1:]} has one text a line. It")
    with ExitStack() as stack:
        stream = _open(stack, source, where)
        total, tell = _size_of(stream), stream.tell
        if chosen == "parquet":
            if total is None:
                raise RequestError(f"Parquet cannot be read from a pipe: {where}.\nPass its path: --file FILE.parquet")
            yield Corpus(_check_rows(read_parquet(stream, where, columns), where), count_parquet_rows(stream, where))
            return
        yield Corpus(
            _check_rows(_READERS[chosen](stream, where, columns), where), total, None if total is None else tell
        )


def _check_no_columns(columns: Columns, what: str) -> None:
    """Raise RequestError if columns are asked for where there are none."""
    wanted = [*columns.texts, *([] if columns.id is None else [columns.id]), *columns.extra]
    if wanted:
        raise RequestError(
            f"{what} has no column {wanted[0]!r}.\n"
            f"Use a .jsonl, .csv or .parquet file, or say what it is: --format {', '.join(FORMATS[1:])}"
        )


def _open(stack: ExitStack, source: Path, where: str) -> BinaryIO:
    if source == STANDARD_INPUT:
        return sys.stdin.buffer
    try:
        return stack.enter_context(open(source, "rb"))
    except OSError as error:
        raise _unreadable(where, error) from error


def _size_of(stream: BinaryIO) -> int | None:
    """Return the size of a file; None for a pipe or a terminal."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # a stream of a program's own has no descriptor
        return None
    return status.st_size if S_ISREG(status.st_mode) else None


def _check_rows(rows: Iterator[Row], where: str) -> Iterator[Row]:
    """Yield the rows. RequestError: there is none, or the file cannot be read to its end."""
    is_empty = True
    try:
        for row in rows:
            is_empty = False
            yield row
    except OSError as error:
        if isinstance(error, MedVLLMError):
            raise
        raise _unreadable(where, error) from error
    if is_empty:
        raise RequestError(
            f"{where[:1].upper()}{where[1:]} contains no text.\nPass texts as arguments: medvllm run NAME 'TEXT'"
        )


def _unreadable(where: str, error: OSError) -> RequestError:
    return RequestError(f"Texts cannot be read from {where}: {error.strerror}.")

"""A corpus: rows with texts from a file, a folder, standard input or a list."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, NamedTuple

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.csv_rows import read_csv, read_tsv
from medvllm.corpora.reading.dataset_rows import is_dataset, open_dataset, read_dataset
from medvllm.corpora.reading.json_rows import read_json_lines, read_json_list
from medvllm.corpora.reading.lines import read_text_lines, split_pair
from medvllm.corpora.reading.notes import find_notes, read_notes
from medvllm.corpora.reading.parquet_rows import count_parquet_rows, read_parquet
from medvllm.corpora.reading.urls import ending_of, is_url, open_url, shown_name
from medvllm.corpora.rows import BadRow, Row
from medvllm.errors import MedVLLMError, RequestError

_LOG = logging.getLogger(__name__)

STANDARD_INPUT = Path("-")

_Reader = Callable[[BinaryIO, str, Columns], Iterator[Row | BadRow]]
_READERS: dict[str, _Reader] = {
    "lines": read_text_lines,
    "jsonl": read_json_lines,
    "json": read_json_list,
    "csv": read_csv,
    "tsv": read_tsv,
}
FORMATS = (*_READERS, "parquet")
_ENDINGS = {".ndjson": "jsonl", ".tab": "tsv", ".psv": "csv", ".txt": "lines"} | {
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
        source: A file, a folder of notes or of a saved dataset, or `-` for standard input.
        columns: The columns to read, where the format has columns.
        format: One of FORMATS; by default, the ending of the file's name decides, and other files have one text a line.

    Raises:
        RequestError: It cannot be opened or read; also while it is read.
    """
    with open_rows(source, columns, format) as found:
        if found.warning is not None:
            _LOG.warning(found.warning)
        yield Corpus(_check_rows(found.rows, _where(source)), found.total, found.tell)


class OpenRows(NamedTuple):
    """The rows of an open file or folder, also those that cannot be read.

    Attributes:
        rows: The rows. RequestError is raised where nothing behind it can be read either.
        total: How much there is to read, in bytes or in rows; None if nobody knows.
        tell: Returns how many bytes were read; None if `total` counts rows.
        warning: What is left out; None if nothing is.
    """

    rows: Iterator[Row | BadRow]
    total: int | None = None
    tell: Callable[[], int] | None = None
    warning: str | None = None


@contextmanager
def open_rows(source: Path | str, columns: Columns, format: str | None = None) -> Iterator[OpenRows]:
    """Open a file or a folder, as `open_corpus` does, but go on behind a row that cannot be read.

    Args:
        source: A file, a folder of notes or of a saved dataset, `-` for standard input, or the URL of a file, such as
            s3://bucket/notes.jsonl.
        columns: The columns to read, where the format has columns.
        format: One of FORMATS; by default, the ending of the file's name decides, and other files have one text a line.
            A URL needs an ending that says it.

    Raises:
        RequestError: It cannot be opened or read; also while it is read.
    """
    path = Path(source)
    where = _where(source)
    if path != STANDARD_INPUT and not is_url(source) and path.is_dir():
        if is_dataset(path):
            dataset = open_dataset(path, where)
            yield OpenRows(read_dataset(dataset, where, columns), len(dataset))
            return
        _check_no_columns(columns, f"Each file of folder {where} is one text. It")
        notes = find_notes(path)
        yield OpenRows(read_notes(path, notes.names), len(notes.names), warning=notes.warning)
        return
    chosen = format or _format_of(source, where)
    if chosen == "lines":
        _check_no_columns(columns, f"{where[:1].upper()}{where[1:]} has one text a line. It")
    with ExitStack() as stack:
        stream = _open(stack, source, where)
        total = _size_of(stream)
        if chosen == "parquet":
            if total is None and not stream.seekable():
                raise RequestError(f"Parquet cannot be read from a pipe: {where}.\nPass its path: --file FILE.parquet")
            with _translated(where):
                rows, count = read_parquet(stream, where, columns), count_parquet_rows(stream, where)
            yield OpenRows(_translate_errors(rows, where), count)
            return
        rows = _READERS[chosen](stream, where, columns)
        yield OpenRows(_translate_errors(rows, where), total, None if total is None else stream.tell)


def _where(source: Path | str) -> str:
    """Return what is read, for messages."""
    return "standard input" if source in (STANDARD_INPUT, str(STANDARD_INPUT)) else repr(shown_name(source))


def _format_of(source: Path | str, where: str) -> str:
    """Return the format of a file by its ending. RequestError: that of a URL is none that is known."""
    if not isinstance(source, str) or not is_url(source):
        return _ENDINGS.get(Path(source).suffix.lower(), "lines")
    if (found := _ENDINGS.get(ending_of(source))) is None:
        raise RequestError(
            f"{where} does not say its format: its name has no ending such as .jsonl or .txt.\n"
            f"Say what it is: --format {', '.join(FORMATS)}"
        )
    return found


def _check_no_columns(columns: Columns, what: str) -> None:
    """Raise RequestError if columns are asked for where there are none."""
    wanted = [*columns.texts, *([] if columns.id is None else [columns.id]), *columns.extra]
    if wanted:
        raise RequestError(
            f"{what} has no column {wanted[0]!r}.\n"
            f"Use a .jsonl, .csv or .parquet file, or say what it is: --format {', '.join(FORMATS[1:])}"
        )


def _open(stack: ExitStack, source: Path | str, where: str) -> BinaryIO:
    if source == STANDARD_INPUT:
        return sys.stdin.buffer
    if is_url(source):
        return stack.enter_context(open_url(str(source)))
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


def _translate_errors(rows: Iterator[Row | BadRow], where: str) -> Iterator[Row | BadRow]:
    """Yield the rows. RequestError: the file cannot be read to its end."""
    with _translated(where):
        yield from rows


@contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, MedVLLMError):
            raise
        raise _unreadable(where, error) from error


def _check_rows(rows: Iterator[Row | BadRow], where: str) -> Iterator[Row]:
    """Yield the rows. RequestError: there is none, or one cannot be read."""
    is_empty = True
    for row in rows:
        is_empty = False
        if isinstance(row, BadRow):
            raise row.error
        yield row
    if is_empty:
        raise RequestError(
            f"{where[:1].upper()}{where[1:]} contains no text.\nPass texts as arguments: medvllm run NAME 'TEXT'"
        )


def _unreadable(where: str, error: OSError) -> RequestError:
    return RequestError(f"Texts cannot be read from {where}: {error.strerror}.")

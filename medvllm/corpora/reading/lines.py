"""Reads the lines of a file of text, and checks that it is one."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.rows import BadRow, Row, row_or_bad
from medvllm.errors import InputTooLongError, RequestError

# Of a line. A text of four million characters, which is the longest, fits, also if JSON escapes most of them.
MAX_BYTES = 64_000_000
# How files of other kinds begin, longer beginnings first, and how to make text of them.
_KINDS = {
    b"\xff\xfe\x00\x00": ("UTF-32", "iconv -f UTF-32 -t UTF-8"),
    b"\x00\x00\xfe\xff": ("UTF-32", "iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16", "iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16", "iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x8b": ("compressed with gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unzstd"),
    b"BZh": ("compressed with bzip2", "bunzip2"),
    b"\xfd7zXZ": ("compressed with xz", "unxz"),
    b"PK\x03\x04": ("a ZIP archive or an Office file", "unzip, or save it as CSV"),
    b"\xd0\xcf\x11\xe0": ("an old Office file", "save it as CSV or text"),
    b"PAR1": ("Parquet", "name it .parquet"),
    b"%PDF": ("PDF", "pdftotext"),
    b"{\\rtf": ("RTF", "save it as text"),
}


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: Its number, from 1.
        text: Its text with its end. If it cannot be read, bytes that are not UTF-8 are lone surrogates.
        error: Why it cannot be read: it is not text in UTF-8, or is too long. None if it can.
    """

    number: int
    text: str
    error: RequestError | None = None


def read_lines(stream: BinaryIO, where: str) -> Iterator[Line]:
    r"""Yield the lines.

    Only \n ends a line. Byte order marks are no part of the first line.

    Args:
        stream: The file.
        where: What is read, for messages.

    Raises:
        RequestError: The file is of another kind.
    """
    number = 0
    while raw := stream.readline(MAX_BYTES + 1):
        number += 1
        if number == 1:
            check_kind(raw, where)
            raw = without_marks(raw)
            if not raw:
                return
        place = f"line {number} of {where}"
        if len(raw) > MAX_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_BYTES)
            yield Line(number, "", too_long(place))
            continue
        try:
            yield Line(number, decode(raw, place))
        except RequestError as error:
            yield Line(number, raw.decode("utf-8", "surrogateescape"), error.with_traceback(None))


def too_long(place: str) -> InputTooLongError:
    """Return the error for a text that is too long for any task."""
    return InputTooLongError(
        f"The text is longer than {MAX_BYTES:,} bytes in {place}.\nSplit it into several texts.", limit=MAX_BYTES
    )


def read_text_lines(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row | BadRow]:
    r"""Yield a row for each line. If `columns` are a pair, a line has two texts with a tab between them.

    \r\n ends a line as well. Empty lines are empty texts, so that the number of a text is the number of its line.
    If all lines are empty, there is no row.
    """
    blank: list[Row | BadRow] | None = []
    for line in read_lines(stream, where):
        row = row_or_bad(_make_row, line, columns, place=f"line {line.number} of {where}")
        if blank is None:
            yield row
        else:
            blank.append(row)
            if line.error is not None or line.text.strip():
                yield from blank
                blank = None


def _make_row(line: Line, columns: Columns, place: str) -> Row:
    if line.error is not None:
        raise line.error
    text = line.text.removesuffix("\n").removesuffix("\r") if line.text.endswith("\n") else line.text
    return Row(split_pair(text, columns, place) if columns.is_pair else text, place)


def split_pair(line: str, columns: Columns, place: str) -> tuple[str, str]:
    """Return the two texts of a line. RequestError: there is not one tab between them."""
    fields = line.split("\t")
    if len(fields) != 2:
        first, second = columns.usual
        raise RequestError(
            f"The model takes pairs of {first} and {second}, but there are {len(fields) - 1} tabs in {place}.\n"
            f"Write one tab between {first} and {second}, or use a file with these columns, such as .csv."
        )
    return fields[0], fields[1]


def decode(raw: bytes, place: str) -> str:
    """Return UTF-8 as text.

    Raises:
        RequestError: It is in another encoding, or has NUL characters. Neither the message nor a cause has the text.
    """
    wrong: int | None = None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error.start
    else:
        if "\0" not in text:
            return text
    # Raised here, not in the handler: the UnicodeDecodeError holds the text.
    if wrong is None:
        raise RequestError(
            f"There is a NUL character in {place}, so it is no text, or in UTF-16.\n"
            "Convert it: iconv -f UTF-16 -t UTF-8, or remove the characters: tr -d '\\000'"
        )
    raise RequestError(
        f"The text is not UTF-8: byte {wrong + 1:,} cannot be read in {place}.\n"
        "Convert it first: iconv -f CP1252 -t UTF-8, or from what it is in"
    )


def without_marks(raw: bytes) -> bytes:
    """Return the beginning of a file without byte order marks. There are two if two programs put one there."""
    while raw.startswith(BOM_UTF8):
        raw = raw.removeprefix(BOM_UTF8)
    return raw


def check_kind(start: bytes, where: str) -> None:
    """Raise RequestError if a file begins like one of another kind than text in UTF-8."""
    if found := next((kind for sign, kind in _KINDS.items() if start.startswith(sign)), None):
        raise RequestError(f"{where[:1].upper()}{where[1:]} is {found[0]}, not text in UTF-8.\nConvert it: {found[1]}")

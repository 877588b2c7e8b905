"""Reads tables of text: CSV and tab-separated values."""

import csv
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, NamedTuple

from medvllm.corpora.reading.columns import Columns, strip_name
from medvllm.corpora.reading.delimiters import DELIMITERS, choose_delimiter, read_stated_delimiter
from medvllm.corpora.reading.json_rows import parse_cell
from medvllm.corpora.reading.lines import Line, read_lines
from medvllm.corpora.rows import BadRow, Row, row_or_bad
from medvllm.errors import InputTooLongError, RequestError

_MAX_FIELD = 16_000_000  # characters; without a limit, a quote that is not closed takes the rest of the file


def read_csv(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield a row for each row of a CSV file with headings.

    They show whether ",", ";", a tab or "|" separates columns. A first line such as `sep=;`, as for Excel, says it.
    """
    return _read_table(stream, where, columns, DELIMITERS)


def read_tsv(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield a row for each row of a file of tab-separated values with headings."""
    return _read_table(stream, where, columns, "\t")


def _read_table(stream: BinaryIO, where: str, columns: Columns, delimiters: str) -> Iterator[Row | BadRow]:
    table = _Table(stream, where, columns, delimiters)
    if table.headings is None:
        return
    headings = [*map(strip_name, table.headings)]
    found = columns.find(headings, where)
    for fields in table:
        yield row_or_bad(_make_row, fields, headings, found, place=f"line {fields.number} of {where}")


class _Fields(NamedTuple):
    """The fields of a row, the number of its first line, and why a line of it cannot be read."""

    values: list[str]
    number: int
    error: RequestError | None = None


def _make_row(fields: _Fields, headings: list[str], columns: Columns, place: str) -> Row:
    if fields.error is not None:
        raise fields.error
    count = len(fields.values)
    if count != len(headings):
        advice = (
            "If R wrote the file, leave its row names out: row.names = FALSE. Otherwise write"
            if count == len(headings) + 1
            else "Write"
        )
        raise RequestError(
            f"There are {count} fields instead of {len(headings)} in {place}.\n"
            f'{advice} a field that contains the separator in quotes: "…"'
        )
    values: dict[str, object] = dict(zip(headings, fields.values, strict=True))
    for name in columns.extra:
        values[name] = parse_cell(str(values[name]), f"column {name!r} in {place}")
    return columns.make_row(values, place)


class _Table:
    """The rows of a file.

    Attributes:
        headings: The fields of the first row; None if there is none.
    """

    def __init__(self, stream: BinaryIO, where: str, columns: Columns, delimiters: str) -> None:
        if csv.field_size_limit() < _MAX_FIELD:  # of the whole process; it is never made smaller
            csv.field_size_limit(_MAX_FIELD)
        self._where, self._begins, self._number = where, 1, 0
        self._error: RequestError | None = None
        lines = read_lines(stream, where)
        first = next((line for line in lines if line.text.strip()), None)
        stated = None if first is None else read_stated_delimiter(first.text)
        if stated is not None:
            first = next((line for line in lines if line.text.strip()), None)
        begin = [] if first is None else [first, *_rest_of_row(first.text, lines)]
        self._lines = chain(begin, lines)
        self._delimiter = stated or choose_delimiter([line.text for line in begin], delimiters, columns, where)
        self.headings = self._next()
        if self._error is not None:
            raise self._error

    def __iter__(self) -> Iterator[_Fields]:
        blank: list[int] = []
        while (fields := self._next()) is not None:
            if fields:
                if self.headings is not None and len(self.headings) == 1:
                    yield from (_Fields([""], number) for number in blank)  # an empty text is all of its row
                blank.clear()
                yield _Fields(fields, self._begins, self._error)
            else:
                blank.append(self._begins)

    def _next(self) -> list[str] | None:
        """Return the fields of the next row, or None at the end of the file."""
        self._begins, self._error = self._number + 1, None
        try:
            return next(csv.reader(self._take_lines(), delimiter=self._delimiter, strict=True), None)
        except csv.Error as error:
            fault = str(error)
        if "end of data" in fault or "field limit" in fault:
            what = "a quote that is not closed"
        elif "new-line" in fault:
            what = "a carriage return that is in no quotes"
        else:
            what = "a quote in the middle of a field"
        raise RequestError(
            f"There is {what} in line {self._begins} of {self._where}, or in the lines that follow.\n"
            'Write a field with quotes or line ends in quotes, and its quotes twice: "say ""ah"""'
        )

    def _take_lines(self) -> Iterator[str]:
        for line in self._lines:
            if isinstance(line.error, InputTooLongError):
                raise line.error  # it may hold the end of a quote, without which the rest cannot be read
            self._number, self._error = line.number, self._error or line.error
            yield line.text


def _rest_of_row(first: str, lines: Iterator[Line]) -> Iterator[Line]:
    """Yield the further lines of a row whose first line leaves a quote open."""
    quotes, size = first.count('"'), len(first)
    while quotes % 2 and size < _MAX_FIELD and (line := next(lines, None)) is not None:
        quotes, size = quotes + line.text.count('"'), size + len(line.text)
        yield line

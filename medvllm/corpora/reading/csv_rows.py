"""Reads tables of text: CSV and tab-separated values."""

import csv
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.json_rows import parse_cell
from medvllm.corpora.reading.lines import read_lines
from medvllm.corpora.rows import Row
from medvllm.errors import RequestError

_DELIMITERS = ",;\t"  # a spreadsheet writes semicolons where the comma is the decimal sign
_MAX_FIELD = 16_000_000  # characters; without a limit, a quote that is not closed takes the rest of the file


def read_csv(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row]:
    """Yield a row for each row of a CSV file with headings. The headings show whether "," or ";" separates columns."""
    return _read_table(stream, where, columns, _DELIMITERS)


def read_tsv(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row]:
    """Yield a row for each row of a file of tab-separated values with headings."""
    return _read_table(stream, where, columns, "\t")


def _read_table(stream: BinaryIO, where: str, columns: Columns, delimiters: str) -> Iterator[Row]:
    table = _Table(stream, where, delimiters)
    if table.headings is None:
        return
    headings = [name.strip() for name in table.headings]
    found = columns.find(headings, where)
    for number, fields in table:
        place = f"line {number} of {where}"
        if len(fields) != len(headings):
            raise RequestError(
                f"There are {len(fields)} fields instead of {len(headings)} in {place}.\n"
                'Write a field that contains the separator in quotes: "…"'
            )
        values: dict[str, object] = dict(zip(headings, fields, strict=True))
        for name in found.extra:
            values[name] = parse_cell(str(values[name]), f"column {name!r} in {place}")
        yield found.make_row(values, place)


class _Table:
    """The rows of a file, each with the number of its first line.

    Attributes:
        headings: The fields of the first row; None if there is none.
    """

    def __init__(self, stream: BinaryIO, where: str, delimiters: str) -> None:
        if csv.field_size_limit() < _MAX_FIELD:  # of the whole process; it is never made smaller
            csv.field_size_limit(_MAX_FIELD)
        self._where, self._begins, self._number = where, 1, 0
        lines = read_lines(stream, where)
        first = next((line for line in lines if line[1].strip()), None)
        self._lines = chain([] if first is None else [first], lines)
        self._delimiter = _choose_delimiter("" if first is None else first[1], delimiters)
        self.headings = self._next()

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while (fields := self._next()) is not None:
            if fields:  # a blank line has none
                yield self._begins, fields

    def _next(self) -> list[str] | None:
        """Return the fields of the next row, or None at the end of the file."""
        self._begins = self._number + 1
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
        for number, line in self._lines:
            self._number = number
            yield line


def _choose_delimiter(line: str, delimiters: str) -> str:
    """Return the character that gives most fields. If none can, the first: the error comes when the line is read."""

    def count_fields(delimiter: str) -> int:
        try:
            return len(next(csv.reader([line], delimiter=delimiter), ()))
        except csv.Error:
            return 0

    return max(delimiters, key=count_fields)

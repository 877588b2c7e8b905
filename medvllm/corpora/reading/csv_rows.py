"""Reads tables of text: CSV and tab-separated values."""

import csv
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO

from medvllm.corpora.reading.columns import Columns, strip_name
from medvllm.corpora.reading.delimiters import DELIMITERS, choose_delimiter, read_stated_delimiter
from medvllm.corpora.reading.json_rows import parse_cell
from medvllm.corpora.reading.lines import read_lines
from medvllm.corpora.rows import Row
from medvllm.errors import RequestError

_MAX_FIELD = 16_000_000  # characters; without a limit, a quote that is not closed takes the rest of the file


def read_csv(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row]:
    """Yield a row for each row of a CSV file with headings.

    They show whether ",", ";", a tab or "|" separates columns. A first line such as `sep=;`, as for Excel, says it.
    """
    return _read_table(stream, where, columns, DELIMITERS)


def read_tsv(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row]:
    """Yield a row for each row of a file of tab-separated values with headings."""
    return _read_table(stream, where, columns, "\t")


def _read_table(stream: BinaryIO, where: str, columns: Columns, delimiters: str) -> Iterator[Row]:
    table = _Table(stream, where, columns, delimiters)
    if table.headings is None:
        return
    headings = [*map(strip_name, table.headings)]
    found = columns.find(headings, where)
    for number, fields in table:
        place = f"line {number} of {where}"
        if len(fields) != len(headings):
            advice = (
                "If R wrote the file, leave its row names out: row.names = FALSE. Otherwise write"
                if len(fields) == len(headings) + 1
                else "Write"
            )
            raise RequestError(
                f"There are {len(fields)} fields instead of {len(headings)} in {place}.\n"
                f'{advice} a field that contains the separator in quotes: "…"'
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

    def __init__(self, stream: BinaryIO, where: str, columns: Columns, delimiters: str) -> None:
        if csv.field_size_limit() < _MAX_FIELD:  # of the whole process; it is never made smaller
            csv.field_size_limit(_MAX_FIELD)
        self._where, self._begins, self._number = where, 1, 0
        lines = read_lines(stream, where)
        first = next((line for line in lines if line[1].strip()), None)
        stated = None if first is None else read_stated_delimiter(first[1])
        if stated is not None:
            first = next((line for line in lines if line[1].strip()), None)
        begin = [] if first is None else [first, *_rest_of_row(first[1], lines)]
        self._lines = chain(begin, lines)
        self._delimiter = stated or choose_delimiter([text for _, text in begin], delimiters, columns, where)
        self.headings = self._next()

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        blank: list[int] = []
        while (fields := self._next()) is not None:
            if fields:
                if self.headings is not None and len(self.headings) == 1:
                    yield from ((number, [""]) for number in blank)  # an empty text is all of its row
                blank.clear()
                yield self._begins, fields
            else:
                blank.append(self._begins)

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


def _rest_of_row(first: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the further lines of a row whose first line leaves a quote open."""
    quotes, size = first.count('"'), len(first)
    while quotes % 2 and size < _MAX_FIELD and (line := next(lines, None)) is not None:
        quotes, size = quotes + line[1].count('"'), size + len(line[1])
        yield line

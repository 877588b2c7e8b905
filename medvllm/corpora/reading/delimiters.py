"""Which character separates the columns of a table of text."""

import csv
import re
from collections.abc import Sequence

from medvllm.corpora.reading.columns import Columns, strip_name
from medvllm.errors import RequestError

DELIMITERS = ",;\t|"  # a spreadsheet writes semicolons where the comma is the decimal sign
_STATED = re.compile(r'"?sep=(?P<sign>[^"\w\s]|\t)"?', re.IGNORECASE)


def read_stated_delimiter(line: str) -> str | None:
    """Return the separator that the first line of a file states, as in `sep=;`; None if it is another line."""
    found = _STATED.fullmatch(line.rstrip("\r\n"))
    return found["sign"] if found else None


def choose_delimiter(headings: Sequence[str], delimiters: str, columns: Columns, where: str) -> str:
    """Return the character that separates the columns.

    Args:
        headings: The lines of the row of the headings.
        delimiters: The characters that may separate columns.
        columns: The columns to read: their names must be among the headings.
        where: What is read, for the message.

    Returns:
        The only character with which the row has the columns. If there is none, the one that gives most headings: the
        error comes when they are read.

    Raises:
        RequestError: Several characters would give the columns.
    """
    split = {delimiter: _split(headings, delimiter) for delimiter in delimiters}
    fitting = [delimiter for delimiter, names in split.items() if columns.are_in(names)]
    if not fitting:
        return max(delimiters, key=lambda delimiter: len(split[delimiter]))
    if len({tuple(split[delimiter]) for delimiter in fitting}) > 1:
        raise RequestError(
            f"The headings of {where} can be separated by {' or '.join(map(repr, fitting))}.\n"
            f"State the separator in a first line: sep={fitting[0]}"
        )
    return fitting[0]


def _split(lines: Sequence[str], delimiter: str) -> list[str]:
    """Return the names in a row of headings; nothing if it cannot be read with this separator."""
    try:
        return [*map(strip_name, next(csv.reader(lines, delimiter=delimiter, strict=True), ()))]
    except csv.Error:
        return []

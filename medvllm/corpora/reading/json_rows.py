"""Reads JSON: one value on each line, or a list of values."""

import codecs
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.lines import MAX_BYTES, Line, check_kind, decode, read_lines, without_marks
from medvllm.corpora.rows import BadRow, Row, row_or_bad
from medvllm.errors import InputTooLongError, RequestError

_READ_BYTES = 1 << 20
_BLANKS = " \t\r\n"


def read_json_lines(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield a row for each line: an object with the columns, or only a text. Blank lines are skipped."""
    for line in read_lines(stream, where):
        if line.error is not None or line.text.strip():
            yield row_or_bad(_row_of_line, line, columns, place=f"line {line.number} of {where}")


def read_json_list(stream: BinaryIO, where: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield a row for each item of a list. Only a part of the file is in memory.

    Raises:
        RequestError: The file is not a list in JSON.
    """
    for number, item in enumerate(_read_items(_Characters(stream, where)), 1):
        yield row_or_bad(_make_row, item, columns, place=f"item {number} of {where}")


def parse_cell(text: str, place: str) -> Any:
    """Return the JSON value that stands in a cell of a table."""
    return _parse(text, place)


def _row_of_line(line: Line, columns: Columns, place: str) -> Row:
    if line.error is not None:
        raise line.error
    return _make_row(_parse(line.text, place), columns, place)


def _make_row(value: Any, columns: Columns, place: str) -> Row:
    if isinstance(value, str) and not columns.texts and not columns.extra and columns.id is None:
        return Row(value, place)
    if not isinstance(value, dict):
        raise RequestError(f'There is no object in {place}.\nWrite it as: {{"text": "…"}}')
    return columns.find(list(value), place).make_row(value, place)


class _Characters:
    """The characters of a file that were read and not yet used, from `at` on."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self.where, self.text, self.at = where, "", 0
        self._stream, self._decoder, self._read = stream, codecs.getincrementaldecoder("utf-8")(), 0

    def read_more(self) -> bool:
        """Read a further part. Return False at the end of the file."""
        self.text, self.at = self.text[self.at :], 0
        if len(self.text) > MAX_BYTES:
            raise InputTooLongError(
                f"An item is longer than {MAX_BYTES:,} characters in {self.where}.\nSplit it into several texts.",
                limit=MAX_BYTES,
            )
        raw = self._stream.read(max(_READ_BYTES, len(self.text)))  # twice as much each time, or it would take long
        if not self._read:
            check_kind(raw, self.where)
            raw = without_marks(raw)
        self._read += len(raw)
        try:
            self.text += self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError:
            wrong = True
        else:
            wrong = False
        place = f"one of the bytes up to {self._read:,} of {self.where}"
        if wrong:  # raised here, not in the handler: that error holds the text
            decode(b"\xff", place)
        if b"\0" in raw:  # before it is an error of JSON, which would not say why
            decode(b"\0", place)
        return bool(raw)

    def skip_blanks(self) -> str:
        """Return the next character that is not blank, or nothing at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in _BLANKS:
                    return self.text[self.at]
                self.at += 1
            if not self.read_more():
                return ""


def _read_items(characters: _Characters) -> Iterator[Any]:
    where = characters.where
    if (first := characters.skip_blanks()) != "[":
        if not first:
            return
        raise RequestError(
            f'{where[:1].upper()}{where[1:]} is no list.\nWrite it as: [{{"text": "…"}}], or use .jsonl for one object '
            "a line."
        )
    characters.at += 1
    number = 0
    while (following := characters.skip_blanks()) != "]" or number:
        number += 1
        yield _read_item(characters, f"item {number} of {where}")
        following = characters.skip_blanks()
        if following not in (",", "]"):
            _refuse(f"item {number} of {where}")
        characters.at += 1
        if following == "]":
            break
    else:
        characters.at += 1
    if characters.skip_blanks():
        _refuse(f"what follows the list in {where}")


def _read_item(characters: _Characters, place: str) -> Any:
    while True:
        value, end = None, None
        with suppress(ValueError, RecursionError):  # it may be cut off
            value, end = _DECODER.raw_decode(characters.text, characters.at)
        if end is not None and end < len(characters.text):
            characters.at = end
            return value
        if not characters.read_more():
            _refuse(place)


def _parse(text: str, place: str) -> Any:
    try:
        return _DECODER.decode(text.strip(_BLANKS))
    except (ValueError, RecursionError):
        pass
    return _refuse(place)  # raised here, not in the handler: that error holds the text


def _refuse(place: str) -> NoReturn:
    raise RequestError(f"There is no valid JSON in {place}.\nFind the fault with: python -m json.tool")


def _refuse_number(_: str) -> NoReturn:
    raise ValueError  # NaN and Infinity are no JSON


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError  # of two values with one name, one would be lost
    return made


_DECODER = json.JSONDecoder(parse_constant=_refuse_number, object_pairs_hook=_make_object)

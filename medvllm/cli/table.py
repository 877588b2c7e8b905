"""Draws tables that fit the terminal: long names are shortened in the middle, and sentences wrap."""

import re
import shutil
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

from rich.cells import cell_len, set_cell_size

from medvllm.cli.streams import encodes, shows_color

_GAP = 2  # spaces between two cells
_UNBREAKABLE = re.compile(r"(?<=\d) (?=[KMGT]?B\b)|(?<=^[+~-]) ")  # a number and its unit, a sign and its name
_MIN_WIDTH = 8


def draw(columns: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], *, in_lines: bool = False) -> str:
    """Return a table as text.

    Args:
        columns: The headings.
        groups: Groups of rows, with a blank line between groups. All share the same column widths.
        in_lines: Whether a row may take only one line; the first column is then shortened.
    """
    groups = [[[_UNBREAKABLE.sub("\xa0", cell) for cell in row] for row in group] for group in groups]
    rows = [columns, *(row for group in groups for row in group)]
    widths = _widths_of_lines(rows) if in_lines else _widths(rows)
    blocks = ["\n".join(_lines(row, widths) for row in group) for group in groups]
    return f"{_bold(_lines(columns, widths))}\n" + "\n\n".join(blocks).replace("\xa0", " ") + "\n"


def shorten(text: str, width: int) -> str:
    """Return a text of at most `width` columns, shortened in the middle."""
    if cell_len(text) <= width:
        return text
    mark = "…" if encodes("…") else "..."
    left = (width - len(mark) + 1) // 2
    right = width - len(mark) - left
    return f"{text[:left]}{mark}{text[-right:] if right > 0 else ''}"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of the columns, for rows that may wrap.

    If the terminal is too narrow, the widest columns shrink: first to their longest word, then further.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    words = [max(cell_len(word) for text in column for word in text.split(" ")) for column in zip(*rows, strict=True)]
    room = shutil.get_terminal_size().columns - _GAP * (len(widths) - 1)
    for least in (words, [_MIN_WIDTH] * len(widths)):
        while sum(widths) > room and (wide := [i for i, width in enumerate(widths) if width > least[i]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _widths_of_lines(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of the columns, for rows of one line. Only the first column shrinks."""
    first, *others = (max(map(cell_len, column)) for column in zip(*rows, strict=True))
    room = shutil.get_terminal_size().columns - sum(others) - _GAP * len(others)
    return [first if room < _MIN_WIDTH else min(first, room), *others]


def _lines(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return a row as text of one or more lines."""
    cells = [_cell(text, width) for text, width in zip(row, widths, strict=True)]
    lines = zip_longest(*cells, fillvalue="")
    return "\n".join((" " * _GAP).join(map(set_cell_size, line, widths)).rstrip() for line in lines)


def _cell(text: str, width: int) -> list[str]:
    """Return the lines of a cell. Words stay whole; a word that is too long for a line is shortened."""
    if cell_len(text) <= width:
        return [text]
    words = " ".join(shorten(word, width) for word in text.split(" "))
    return wrap(words, width, break_long_words=False, break_on_hyphens=False) or [""]


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if shows_color() else text

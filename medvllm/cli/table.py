"""Tables that fit the terminal: names are cut in their middle, sentences wrap between words."""

import os
import re
import shutil
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

from rich.cells import cell_len, set_cell_size

from medvllm.cli.streams import encodes

_GAP = 2  # columns between two cells
_TOGETHER = re.compile(r"(?<=\d) (?=[KMGT]?B\b)|(?<=^[+~-]) ")  # a number and its unit, a sign and its name
_LEAST = 8  # columns that a cell is never cut below


def draw(columns: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], *, in_lines: bool = False) -> str:
    """Return rows under their headings as text; groups of rows share the widths, and a blank line parts them.

    `in_lines`: each row is one line, and the first column alone gives way.
    """
    groups = [[[_TOGETHER.sub("\xa0", cell) for cell in row] for row in group] for group in groups]
    rows = [columns, *(row for group in groups for row in group)]
    widths = _widths_of_lines(rows) if in_lines else _widths(rows)
    blocks = ["\n".join(_lines(row, widths) for row in group) for group in groups]
    return f"{_bold(_lines(columns, widths))}\n" + "\n\n".join(blocks).replace("\xa0", " ") + "\n"


def cut(text: str, width: int) -> str:
    """Return a text of at most `width` columns: what is too much is taken from its middle."""
    if cell_len(text) <= width:
        return text
    mark = "…" if encodes("…") else "..."
    left = (width - len(mark) + 1) // 2
    right = width - len(mark) - left
    return f"{text[:left]}{mark}{text[-right:] if right > 0 else ''}"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the columns' widths: as wide as what they hold, while the terminal has room.

    Without room the widest give way: first down to their longest words, then further.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    words = [max(cell_len(word) for text in column for word in text.split(" ")) for column in zip(*rows, strict=True)]
    room = shutil.get_terminal_size().columns - _GAP * (len(widths) - 1)
    for least in (words, [_LEAST] * len(widths)):
        while sum(widths) > room and (wide := [i for i, width in enumerate(widths) if width > least[i]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def _widths_of_lines(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the columns' widths where a row is one line; what is too long for any terminal is left to it."""
    first, *others = (max(map(cell_len, column)) for column in zip(*rows, strict=True))
    room = shutil.get_terminal_size().columns - sum(others) - _GAP * len(others)
    return [first if room < _LEAST else min(first, room), *others]


def _lines(row: Sequence[str], widths: Sequence[int]) -> str:
    """Return a row as one line or more."""
    cells = [_cell(text, width) for text, width in zip(row, widths, strict=True)]
    lines = zip_longest(*cells, fillvalue="")
    return "\n".join((" " * _GAP).join(map(set_cell_size, line, widths)).rstrip() for line in lines)


def _cell(text: str, width: int) -> list[str]:
    """Return the lines of a cell: words stay whole, and one that is too long for a line is cut."""
    if cell_len(text) <= width:
        return [text]
    words = " ".join(cut(word, width) for word in text.split(" "))
    return wrap(words, width, break_long_words=False, break_on_hyphens=False) or [""]


def _bold(text: str) -> str:
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[1m{text}\x1b[0m"

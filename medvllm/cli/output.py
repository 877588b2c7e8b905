"""What a command prints: tables on a terminal, tab-separated lines in a pipe, or JSON. Data goes to stdout."""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from medvllm.cli.streams import encodes
from medvllm.progress import is_terminal


def print_json(content: Any) -> None:
    """Print `content` as JSON, indented; what a terminal would not show is escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    if encodes(text):
        text = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1] if _hides(found[0]) else found[0], text)
    else:
        text = json.dumps(content, indent=2, allow_nan=False)
    sys.stdout.write(text)
    sys.stdout.write("\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; in a pipe, one line a row with tabs between and no heading."""
    shown = [[printable(cell) for cell in row] for row in rows]
    if not is_terminal(sys.stdout):
        sys.stdout.write("".join("\t".join(row) + "\n" for row in shown))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=i == 0)  # the first is to be copied
    for row in shown:
        table.add_row(*map(Text, row))  # Text: a name in brackets is no markup
    Console().print(table)


def megabytes(size_bytes: int) -> str:
    """Return a size as text."""
    return f"{size_bytes / 1e6:,.1f} MB"


def one_line(value: object, separator: str) -> object:
    """Return a list or a dict as the text of its items; another value as it is."""
    items = [f"{key}={text}" for key, text in value.items()] if isinstance(value, dict) else value
    return separator.join(map(str, items)) if isinstance(items, list) else items


def printable(value: object) -> str:
    """Return a value as text that cannot move the cursor or turn the line around."""
    text = "-" if value is None or value == () or value == [] else str(value)
    return "".join(c if not _hides(c) else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text)


_NOT_ASCII = re.compile(r"[^\x00-\x7e]")


def _hides(character: str) -> bool:
    """Return whether a character moves the cursor, ends a line or has no shape of its own."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")

"""Prints results to standard output: a table on a terminal, tab-separated lines in a pipe, or JSON."""

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

from medvllm.cli.streams import encodes
from medvllm.progress import is_terminal


def print_json(content: Any) -> None:
    """Print `content` as indented JSON. Invisible characters are escaped."""
    sys.stdout.write(format_json(content))
    sys.stdout.write("\n")


def format_json(content: Any) -> str:
    """Return `content` as indented JSON, with characters escaped that are invisible or that the terminal lacks."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    if not encodes(text):
        return json.dumps(content, indent=2, allow_nan=False)
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1] if _hides(found[0]) else found[0], text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, in_lines: bool = False) -> None:
    """Print rows as a table, or in a pipe as lines with tabs and without headings.

    Args:
        columns: The headings.
        rows: The rows, of any values.
        in_lines: Whether a row may take only one line on a terminal; the first column is then shortened.
    """
    print_groups(columns, [rows], in_lines=in_lines)


def print_findings(findings: Mapping[str, Mapping[str, str]], checked: str, *, as_json: bool) -> None:
    """Print what a check of models found, and exit with 1 if it found anything.

    Args:
        findings: For each model, what is wrong with each part of it; nothing for a model that is as it should be.
        checked: What was checked, for the row of such a model.
        as_json: Whether to print JSON.
    """
    if as_json:
        print_json(findings)
    else:
        rows = [(name, *found) for name, wrong in findings.items() for found in (wrong or {checked: "ok"}).items()]
        print_table(("MODEL", "WHAT", "STATE"), rows)
    if any(findings.values()):
        raise typer.Exit(1)


def print_groups(
    columns: Sequence[str], groups: Iterable[Iterable[Sequence[object]]], *, in_lines: bool = False
) -> None:
    """Print groups of rows as one table, with a blank line between groups. Prints nothing without rows."""
    shown = [[[printable(cell) for cell in row] for row in rows] for rows in groups]
    shown = [rows for rows in shown if rows]
    if not is_terminal(sys.stdout):
        sys.stdout.write("".join("\t".join(row) + "\n" for rows in shown for row in rows))
    elif shown:
        from medvllm.cli.table import draw

        sys.stdout.write(draw(columns, shown, in_lines=in_lines))


def printable(value: object) -> str:
    """Return a value as text, with control characters and other invisible characters escaped."""
    text = "-" if value is None or value == () or value == [] else str(value)
    if text.isprintable():  # most texts, and much faster
        return text
    return "".join(c if not _hides(c) else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in text)


_NOT_ASCII = re.compile(r"[^\x00-\x7e]")


def _hides(character: str) -> bool:
    """Return whether a character moves the cursor, ends a line or is invisible."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")

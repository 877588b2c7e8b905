"""Prints the answers for a corpus to standard output: JSON, a table, texts, or notes with highlighted entities."""

import sys
from textwrap import indent
from typing import TYPE_CHECKING, Any, Protocol

from medvllm.cli.output import format_json, print_table
from medvllm.cli.running.highlight import Highlighter, is_highlighted, visible
from medvllm.cli.streams import shows_color
from medvllm.progress import is_terminal

if TYPE_CHECKING:
    from medvllm.engine.model_runner.corpus_run import CorpusAnswers


class Printer(Protocol):
    """Prints the answers for a corpus, chunk by chunk."""

    def write(self, answers: "CorpusAnswers") -> None:
        """Print the answers for a chunk."""

    def finish(self, receipt: dict[str, Any] | None) -> None:
        """Print what comes after the last answers."""


class JsonPrinter:
    """Prints one object with the task, the results and the receipt."""

    _begun = False

    def write(self, answers: "CorpusAnswers") -> None:
        """Print the records of a chunk."""
        for record in answers.records():
            before = "," if self._begun else f'{{\n  "task": {format_json(answers.task)},\n  "results": ['
            self._begun = True
            sys.stdout.write(f"{before}\n{indent(format_json(record), '    ')}")

    def finish(self, receipt: dict[str, Any] | None) -> None:
        """Print the receipt."""
        sys.stdout.write(f'\n  ],\n  "receipt": {indent(format_json(receipt), "  ").lstrip()}\n}}\n')


class TextPrinter:
    """Prints for people on a terminal, and tab-separated lines in a pipe."""

    def __init__(self) -> None:
        self._highlighter = Highlighter()

    def write(self, answers: "CorpusAnswers") -> None:
        """Print the answers for a chunk."""
        if is_terminal(sys.stdout) and shows_color() and is_highlighted(answers):
            self._highlighter.print(answers)
        elif is_terminal(sys.stdout) and answers.has_texts:
            _print_texts(answers)
        else:
            columns = tuple(column.upper() for column in answers.columns)
            print_table(columns, (tuple(map(_cell, row)) for row in answers.rows()))
        sys.stdout.flush()

    def finish(self, receipt: dict[str, Any] | None) -> None:
        """Print the legend of the entities."""
        self._highlighter.print_legend()


def _print_texts(answers: "CorpusAnswers") -> None:
    names = answers.names()
    for name, text in zip(names, answers.texts(), strict=True):
        if answers.offset or len(names) > 1 or answers.has_ids:
            sys.stdout.write(f"{visible(name)}:\n")
        sys.stdout.write(visible(text).rstrip("\n") + "\n")


def _cell(value: object) -> object:
    """Return a cell as it is printed: scores with four digits; vectors whole in a pipe, shortened on a terminal."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if not isinstance(value, list):
        return value
    if is_terminal(sys.stdout):
        return " ".join(f"{number:+.3f}" for number in value[:6]) + f" … ({len(value)} numbers)"
    return " ".join(f"{number:.7g}" for number in value)

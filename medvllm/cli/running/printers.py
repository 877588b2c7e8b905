"""Prints the answers for a corpus to standard output: JSON, a table, texts, or notes with highlighted entities."""

import sys
from textwrap import indent
from typing import TYPE_CHECKING, Any, Protocol

from medvllm.cli.output import format_json, print_table
from medvllm.cli.running.highlight import Highlighter, is_highlighted, visible
from medvllm.cli.streams import shows_color
from medvllm.progress import is_terminal

if TYPE_CHECKING:
    from medvllm.engine.model_runner.corpus_run import CorpusAnswers, Listener
    from medvllm.engine.model_runner.generation.answers import Piece


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
        self._streamed = StreamedTexts()

    @property
    def listen(self) -> "Listener | None":
        """What prints a text while it is generated; None for a pipe, which gets a table."""
        return self._streamed.add if is_terminal(sys.stdout) else None

    def stop(self) -> None:
        """End the line of a text that is not complete."""
        self._streamed.end_line()

    def write(self, answers: "CorpusAnswers") -> None:
        """Print the answers for a chunk."""
        if is_terminal(sys.stdout) and shows_color() and is_highlighted(answers):
            self._highlighter.print(answers)
        elif self._streamed.has(answers):
            return
        elif is_terminal(sys.stdout) and answers.has_texts:
            _print_texts(answers)
        else:
            columns = tuple(column.upper() for column in answers.columns)
            print_table(columns, (tuple(map(_cell, row)) for row in answers.rows()))
        sys.stdout.flush()

    def finish(self, receipt: dict[str, Any] | None) -> None:
        """Print the legend of the entities."""
        self._highlighter.print_legend()


class StreamedTexts:
    """Prints texts while they are generated, as they would be printed when they are complete."""

    def __init__(self) -> None:
        self._offset, self._position = -1, -1  # of the chunk, and of the text in it
        self._held = ""  # line ends are held back: those at the end of a text are not printed
        self._is_open = False

    def add(self, answers: "CorpusAnswers", piece: "Piece") -> None:
        """Print the next piece of a text."""
        if (answers.offset, piece.position) != (self._offset, self._position):
            self._offset, self._position = answers.offset, piece.position
            self._held, self._is_open = "", True
            _print_name(answers, piece.position)
        text = self._held + piece
        kept = text.rstrip("\r\n")
        sys.stdout.write(visible(kept))
        self._held = text[len(kept) :]
        if piece.answer is not None:
            # What is not the end of a line is printed as it is elsewhere.
            sys.stdout.write(visible(self._held).rstrip("\n"))
            self.end_line()
        sys.stdout.flush()

    def has(self, answers: "CorpusAnswers") -> bool:
        """Return whether the texts of a chunk were printed."""
        return self._offset == answers.offset

    def end_line(self) -> None:
        """End the line of a text."""
        if self._is_open:
            sys.stdout.write("\n")
            self._is_open = False


def _print_texts(answers: "CorpusAnswers") -> None:
    for position, text in enumerate(answers.texts()):
        _print_name(answers, position)
        sys.stdout.write(visible(text).rstrip("\n") + "\n")


def _print_name(answers: "CorpusAnswers", position: int) -> None:
    """Print the name of a text, unless there is only one without a name."""
    if answers.offset or len(answers.given) > 1 or answers.has_ids:
        sys.stdout.write(f"{visible(answers.names()[position])}:\n")


def _cell(value: object) -> object:
    """Return a cell as it is printed: scores with four digits; vectors whole in a pipe, shortened on a terminal."""
    if isinstance(value, float):
        return f"{value:.4f}"
    if not isinstance(value, list):
        return value
    if is_terminal(sys.stdout):
        return " ".join(f"{number:+.3f}" for number in value[:6]) + f" … ({len(value)} numbers)"
    return " ".join(f"{number:.7g}" for number in value)

"""Prints notes with their entities highlighted."""

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from medvllm.cli.output import printable

if TYPE_CHECKING:
    from rich.text import Text

    from medvllm.engine.model_runner.corpus_run import CorpusAnswers

_TASKS = ("ner", "deid")
_COLORS = ("yellow", "cyan", "green", "magenta", "bright_blue", "bright_red", "white")
_WAYS = ("", "underline ", "bold ", "bold underline ")  # further labels repeat the colours in another way


class Highlighter:
    """Prints notes, and in the end which colour stands for which label."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._styles: dict[str, str] = {}

    def print(self, answers: "CorpusAnswers") -> None:
        """Print the notes of a chunk."""
        found: Any = answers.result
        for name, row, entities in zip(answers.names(), answers.given, found, strict=True):
            if answers.offset or len(found) > 1 or answers.has_ids:
                sys.stdout.write(f"{visible(name)}:\n")
            _print(self._highlight(row.text, entities.spans))

    def print_legend(self) -> None:
        """Print each label in its colour, and how often it was found."""
        if self._counts:
            from rich.text import Text

            sys.stdout.write("\n")
            for label, count in self._counts.most_common():
                _print(Text.assemble((f" {printable(label)} ", self._styles[label]), f" {count:,}"))

    def _highlight(self, text: str, spans: Any) -> "Text":
        from rich.text import Text

        note, at = Text(), 0
        for span in sorted(spans, key=lambda span: (span.start, -span.end)):
            start = max(span.start, at)
            if span.end <= start:
                continue
            note.append(visible(text[at:start]))
            note.append(visible(text[start : span.end]), self._style(span.label))
            self._counts[span.label] += 1
            at = span.end
        return note.append(visible(text[at:]).rstrip("\n"))

    def _style(self, label: str) -> str:
        if label not in self._styles:
            number = len(self._styles)
            way = _WAYS[number // len(_COLORS) % len(_WAYS)]
            self._styles[label] = f"{way}black on {_COLORS[number % len(_COLORS)]}"
        return self._styles[label]


def is_highlighted(answers: "CorpusAnswers") -> bool:
    """Return whether answers are entities in texts. Those in lists of words are shown as a table."""
    return answers.task in _TASKS and all(isinstance(row.text, str) for row in answers.given)


def visible(text: str) -> str:
    """Return a text whose line ends and tabs stay, with other control characters and invisible ones escaped."""
    parts = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(printable(part) for part in line.split("\t")) for line in parts)


def _print(text: "Text") -> None:
    from rich.console import Console

    Console(file=sys.stdout, force_terminal=True, color_system="standard", highlight=False).print(text, soft_wrap=True)

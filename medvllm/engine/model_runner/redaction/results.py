"""What a redaction returns: the redacted texts, and what was done where."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.results import Cell, Result


@dataclass(frozen=True)
class RedactedItem:
    """One change of a text. The offsets count Unicode code points; ends are exclusive.

    Attributes:
        start: Where the new text begins in the redacted text.
        end: Where it ends there.
        source_start: Where the old text began in the original text.
        source_end: Where it ended there.
        label: What it was, for example "PATIENT".
        operator: What was done: the type of an operator.
        score: The highest probability among its pieces that a piece is not outside.
        reason: Why it was replaced, although another operator was asked for; None if nothing went otherwise.
    """

    start: int
    end: int
    source_start: int
    source_end: int
    label: str
    operator: str
    score: float
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the change, for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Redaction:
    """A redacted text.

    Attributes:
        text: The text without what was redacted.
        items: What was redacted, in the order of the text. No item contains the source text.
        coverage: What the model read of the original text: all of it.
    """

    text: str
    items: list[RedactedItem]
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the text, for JSON."""
        return self.coverage.to_dict() | {"text": self.text, "items": [item.to_dict() for item in self.items]}


class RedactionResults(Result, list[Redaction]):
    """The redaction of each text."""

    columns: ClassVar[tuple[str, ...]] = ("text", "redacted", "items")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each text: the redacted text, and the number of changes."""
        for number, redaction in enumerate(self, 1):
            yield number, redaction.text, len(redaction.items)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [redaction.to_dict() for redaction in self]

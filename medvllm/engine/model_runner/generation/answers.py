"""The answers of a generation: whole, and piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.results import Cell, Result


@dataclass(frozen=True)
class Answer:
    """What a model generated for one prompt.

    Attributes:
        text: The text after the prompt, without end tokens and without the stop text.
        finish_reason: "stop" if the model ended the answer, or a stop text did; "length" if there was no room for more.
        prompt_tokens: The tokens of the prompt, special tokens included.
        completion_tokens: The tokens that the model generated, the end token included.
        coverage: What the model read of the prompt. Of a conversation, the contents count as one text.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the answer, for JSON."""
        return self.coverage.to_dict() | {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens},
        }


class GenerationResults(Result, list[Answer]):
    """For each prompt, the answer of the model."""

    columns: ClassVar[tuple[str, ...]] = ("text", "answer", "finish_reason", "prompt_tokens", "completion_tokens")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each prompt."""
        for number, answer in enumerate(self, 1):
            yield number, answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each prompt, for JSON."""
        return [answer.to_dict() for answer in self]


class Piece(str):
    """The next piece of the text of an answer, as a stream yields it. Joined, the pieces of a prompt are its answer.

    Attributes:
        position: The position of the prompt in the request.
        answer: The whole answer, with the last piece of a prompt; None before.
        version: The version of the entry that answers; None if it is not known.
    """

    position: int
    answer: Answer | None
    version: int | None = None

    def __new__(cls, text: str, position: int, answer: Answer | None = None) -> "Piece":
        """Return a piece of text."""
        piece = super().__new__(cls, text)
        piece.position, piece.answer = position, answer
        return piece

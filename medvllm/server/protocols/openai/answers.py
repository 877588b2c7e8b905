"""What a model generates, as OpenAI's API writes it: whole, and as the events of a stream."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from medvllm.engine.model_runner.generation.answers import Answer, Piece


class Form:
    """How an endpoint writes what a model generates, for one request.

    Args:
        model: The name of the model, as the client wrote it.
        lengths: The characters of each prompt; of a conversation, those of all contents.
    """

    prefix: ClassVar[str]
    kind: ClassVar[str]
    event_kind: ClassVar[str]

    def __init__(self, model: str, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self._id, self._created, self._model = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time()), model

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Return the content of an answer that is not streamed."""
        choices = [self._last(number, self._content(answer.text), answer) for number, answer in enumerate(answers)]
        return self._head(self.kind) | {"choices": choices, "usage": _usage(answers)}

    def events(self, *, has_usage: bool) -> Callable[[Piece | None], Iterator[dict[str, Any]]]:
        """Return what yields the events of each piece, and after the last one, for None, that of the usage."""
        answers: list[Answer] = []
        begun: set[int] = set()
        head = self._head(self.event_kind) | ({"usage": None} if has_usage else {})

        def describe(piece: Piece | None) -> Iterator[dict[str, Any]]:
            if piece is None:
                if has_usage:
                    yield head | {"choices": [], "usage": _usage(answers)}
                return
            contents = [] if piece.position in begun else self._begin()
            begun.add(piece.position)
            if piece:
                contents.append(self._part(str(piece)))
            for content in contents:
                yield head | {"choices": [self._choice(piece.position, content, None)]}
            if piece.answer is not None:
                answers.append(piece.answer)
                yield head | {"choices": [self._last(piece.position, self._end(), piece.answer)]}

        return describe

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _choice(self, number: int, content: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": number, **content, "logprobs": None, "finish_reason": reason}

    def _last(self, number: int, content: dict[str, Any], answer: Answer) -> dict[str, Any]:
        """Return the choice that ends an answer. It says so if the model has not read all of its prompt."""
        choice = self._choice(number, content, answer.finish_reason)
        length, read = self._lengths[number], answer.coverage.read
        if sum(end - start for start, end in read) == length:
            return choice
        return choice | {"coverage": {"complete": False, "read": read}}

    def _content(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _begin(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _part(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _end(self) -> dict[str, Any]:
        raise NotImplementedError


class ChatForm(Form):
    """The form of `/v1/chat/completions`."""

    prefix, kind, event_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _begin(self) -> list[dict[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}}]

    def _part(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def _end(self) -> dict[str, Any]:
        return {"delta": {}}


class CompletionForm(Form):
    """The form of `/v1/completions`."""

    prefix, kind, event_kind = "cmpl", "text_completion", "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _begin(self) -> list[dict[str, Any]]:
        return []

    def _part(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _end(self) -> dict[str, Any]:
        return {"text": ""}


def _usage(answers: Sequence[Answer]) -> dict[str, int]:
    read = sum(answer.prompt_tokens for answer in answers)
    made = sum(answer.completion_tokens for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

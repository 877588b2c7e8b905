"""One answer in the making: tokens go in, and it tells when it is complete."""

from typing import TYPE_CHECKING, Literal

from medvllm.engine.model_runner.generation.answers import Answer, Piece
from medvllm.engine.model_runner.generation.prompts import Prompt
from medvllm.engine.model_runner.generation.text import AnswerText

if TYPE_CHECKING:
    from transformers import GenerationConfig


class Answering:
    """One answer in the making.

    Attributes:
        prompt: The prompt.
        config: What transformers is told, with the length of this answer.
        is_complete: Whether nothing more belongs to the answer.
        needs_each_token: Whether each token must be added when it comes, and not only at the end.
    """

    def __init__(self, prompt: Prompt, config: "GenerationConfig", text: AnswerText) -> None:
        self.prompt, self.config = prompt, config
        self.is_complete = False
        self.needs_each_token = text.needs_each_token
        self._ends = frozenset(config.eos_token_id or ())
        self._text = text
        self._tokens = 0

    def add(self, token: int) -> Piece | None:
        """Add a token, and return the next piece of text, if there is one. The last piece has the answer."""
        self._tokens += 1
        is_end = token in self._ends
        piece = self._text.add(token)
        if is_end or self._text.is_stopped or self._tokens >= self.config.max_new_tokens:
            self.is_complete = True
            piece += self._text.finish()
            reason: Literal["stop", "length"] = "stop" if is_end or self._text.is_stopped else "length"
            answer = Answer(self._text.text, reason, len(self.prompt.ids), self._tokens, self.prompt.coverage)
            return Piece(piece, self.prompt.position, answer)
        return Piece(piece, self.prompt.position) if piece else None

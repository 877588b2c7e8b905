"""The text of an answer, put together token by token."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 8  # tokens of the prompt that are decoded with the answer: a first blank appears only after another word
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # a token that is a part of a character
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_CHANGING = ("WordPiece", "CTC")  # decoders that change what stands before a token


class AnswerText:
    """The text of an answer, put together token by token.

    `add` and `finish` return the next piece of the text. A piece never ends within a character, nor within what may
    become a stop text. The pieces joined are `text`.

    Args:
        tokenizer: The tokenizer.
        prompt: The token ids that the answer continues; empty if it starts anew.
        stop: Texts that end the answer. The answer ends before the first of them.
        is_streamed: Whether `add` returns pieces. Otherwise `finish` returns the whole text.

    Attributes:
        text: The pieces so far.
        is_stopped: Whether a stop text was found.
        needs_each_token: Whether each token must be read when it comes, and not only at the end.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[int], stop: Sequence[str], *, is_streamed: bool
    ) -> None:
        self.text = ""
        self.is_stopped = False
        self.needs_each_token = is_streamed or bool(stop)
        self._tokenizer, self._stop, self._is_streamed = tokenizer, stop, is_streamed
        self._context, self._tokens = list(prompt[-_CONTEXT:]) if _has_decoder(tokenizer) else [], list[int]()
        self._before = self._decode(self._context)
        self._is_exact, self._is_byte = _is_exact(tokenizer), False
        self._special = frozenset(tokenizer.all_special_ids)

    def add(self, token: int) -> str:
        """Add a token, and return the piece of text that is certain now; often it is empty."""
        self._tokens.append(token)
        if token not in self._special:
            self._is_byte = bool(_BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))))
        if not self.needs_each_token:
            return ""
        text = self._read()
        found = [place for stop in self._stop if (place := text.find(stop, len(self.text))) >= 0]
        if found:
            self.is_stopped = True
            return self._take(text[: min(found)])
        return self._take(text[: self._certain(text)]) if self._is_streamed else ""

    def finish(self) -> str:
        """Return the rest of the text."""
        return "" if self.is_stopped else self._take(self._read())

    def _take(self, text: str) -> str:
        piece = text[len(self.text) :]
        self.text += piece
        return piece

    def _read(self) -> str:
        whole = self._decode(self._context + self._tokens)
        return whole[len(self._before) :] if whole.startswith(self._before) else self._decode(self._tokens)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""

    def _certain(self, text: str) -> int:
        """Return how many characters of the text no later token can change, and no stop text can take away."""
        given = len(self.text)
        if self._is_byte:  # the next one may make another character of it, also after a special token
            return given
        end = len(text.rstrip(_INCOMPLETE))
        if not self._is_exact:  # a blank may go, and so may the last word become another
            words = text[:end].rstrip()
            end = len(words[: max((i for i, letter in enumerate(words) if letter.isspace()), default=0)].rstrip())
        begun = [
            length
            for stop in self._stop
            for length in range(1, min(len(stop), end - given + 1))
            if text.endswith(stop[:length], 0, end)
        ]
        return max(end - max(begun, default=0), given)


def _has_decoder(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a tokenizer knows which blanks belong to a text. Without a decoder, it puts one between tokens."""
    backend: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    return backend is None or backend.decoder is not None


def _is_exact(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a token never changes the text of the tokens before it."""
    if not tokenizer.is_fast or tokenizer.clean_up_tokenization_spaces:
        return False
    backend: Any = tokenizer.backend_tokenizer
    return type(backend.decoder).__name__ not in _CHANGING

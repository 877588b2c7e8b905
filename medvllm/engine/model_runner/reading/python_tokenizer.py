"""Windows of a tokenizer that is written in Python: it splits no text, but its tokens can be divided among windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text, or of one window of it.

    Attributes:
        ids: The token ids, with special tokens.
        special: For each token, 1 for a special token and 0 for another.
        types: For each token, the number of its text in a pair; empty if the tokenizer does not tell.
        cut: The positions of the tokens of the text that is divided, without special tokens.
        begin: How many tokens of that text are before these.
    """

    ids: list[int]
    special: list[int]
    types: Sequence[int]
    cut: list[int]
    begin: int = 0


class PythonTokenizer:
    """A tokenizer that is written in Python.

    Args:
        tokenizer: The tokenizer.
        allow_special_tokens: Whether special tokens in a text are special tokens.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, allow_special_tokens: bool) -> None:
        self._tokenizer: Any = tokenizer
        self._allow_special_tokens = allow_special_tokens
        # Some declare the types of BERT, and return them only if they are asked to.
        style = (getattr(tokenizer, name, None) for name in ("special_tokens_pattern", "token_type_ids_pattern"))
        self._has_types = True if tuple(style) == ("cls_sep", "bert_style") else None

    def encode(self, first: str | list[str], second: str | None = None) -> Encoded:
        """Return the tokens of a whole text, list of words or pair."""
        encoding = self._tokenizer(
            [first],  # as a list: otherwise, transformers leaves out an empty second text
            None if second is None else [second],
            is_split_into_words=isinstance(first, list),
            return_special_tokens_mask=True,
            return_token_type_ids=self._has_types,
            split_special_tokens=not self._allow_special_tokens,
            verbose=False,
        )
        types = encoding["token_type_ids"][0] if "token_type_ids" in encoding else ()
        special = encoding["special_tokens_mask"][0]
        return Encoded(encoding["input_ids"][0], special, types, _find_content(special))

    def read(self, text: str | list[str]) -> list[int]:
        """Return the token ids of a text or list of words, without special tokens around it."""
        encoding = self._tokenizer(
            text,
            is_split_into_words=isinstance(text, list),
            add_special_tokens=False,
            split_special_tokens=not self._allow_special_tokens,
            verbose=False,
        )
        return list(encoding["input_ids"])

    def divide(self, whole: Encoded, first: str | list[str], second: str | None, step: int) -> list[Encoded] | None:
        """Return windows of a text that is too long: its tokens, each part with the special tokens of a whole text.

        Args:
            whole: The tokens of the text, or of the pair.
            first: The text, list of words, or first text of the pair, which is in every window.
            second: The second text of the pair, which is divided; None for a single text.
            step: How many tokens neighbouring windows share.

        Returns:
            The windows, or None if the tokenizer does not make the tokens of the whole in this way.
        """
        ids = self.read(first)
        front, divided = (None, ids) if second is None else (ids, self.read(second))
        if (made := self.wrap(divided, front)) is None or made.ids != whole.ids:
            return None
        room = self._tokenizer.model_max_length - (len(whole.ids) - len(divided))
        begins = [0]
        while begins[-1] + room < len(divided):
            begins.append(begins[-1] + room - step)
        parts = (self.wrap(divided[begin : begin + room], front, begin) for begin in begins)
        return [part for part in parts if part is not None]

    def wrap(self, ids: list[int], front: list[int] | None = None, begin: int = 0) -> Encoded | None:
        """Return tokens with special tokens around them, for a tokenizer whose class does this in the usual way.

        Args:
            ids: The tokens.
            front: Those of the first text, if they are of the second text of a pair.
            begin: How many tokens of the text are before them.
        """
        from transformers.tokenization_python import PythonBackend

        if getattr(type(self._tokenizer), "prepare_for_model", None) is not PythonBackend.prepare_for_model:
            return None
        texts = (ids, None) if front is None else (front, ids)
        made = self._tokenizer.prepare_for_model(
            *texts, return_special_tokens_mask=True, return_token_type_ids=self._has_types, verbose=False
        )
        special = made["special_tokens_mask"]
        cut = _find_content(special)[len(front or ()) :]
        return Encoded(made["input_ids"], special, made.get("token_type_ids", ()), cut, begin)


def _find_content(special: Sequence[int]) -> list[int]:
    """Return the positions of the tokens that are not special."""
    return [k for k, is_special in enumerate(special) if not is_special]

"""Special tokens that are meant as such, in texts whose other special tokens are plain text.

A note may contain "[MASK]" or "[SEP]" as text, while the gap to fill, a marker or a prompt means the special token.
Where it is meant, a stand-in is written: a text that no note contains. A copy of the tokenizer reads the stand-in as a
token of its own, in the same way as the special token, and its id becomes that of the special token.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from medvllm.engine.model_runner.reading.windows import Window
from medvllm.engines import PlainTokenizer
from medvllm.errors import RequestError
from medvllm.forking import Lock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Two code points that Unicode reserves for use inside of a program. No text that is exchanged has them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"

_known: "WeakKeyDictionary[PreTrainedTokenizerBase, Commands]" = WeakKeyDictionary()
_lock = Lock()  # guards _known


class Commands:
    """The special tokens of a tokenizer, and the stand-ins for them.

    Attributes:
        tokenizer: A copy of the tokenizer that reads the stand-ins.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer: Any = _copy_tokenizer(tokenizer)
        ids: Any = tokenizer.convert_tokens_to_ids(tokenizer.all_special_tokens)
        special: dict[str, int] = dict(zip(tokenizer.all_special_tokens, ids, strict=True))
        self._stand_ins = {token: f"{_OPEN}{number}{_CLOSE}" for number, token in enumerate(special)}
        self._ids = _add_stand_ins(self.tokenizer, self._stand_ins, special)

    @property
    def allow_special_tokens(self) -> bool:
        """Whether the copy must be asked to read special tokens. One written in Python knows only the stand-ins."""
        return not self.tokenizer.is_fast

    def write(self, text: str, only: Collection[str] | None = None) -> str:
        """Return a text with the stand-ins of its special tokens, or of those in `only`."""
        meant = [token for token in self._stand_ins if only is None or token in only]
        if not meant:
            return text
        longest_first = sorted(meant, key=len, reverse=True)
        return re.sub("|".join(map(re.escape, longest_first)), lambda found: self._stand_ins[found[0]], text)

    def read(self, windows: Sequence[Window]) -> list[Window]:
        """Return windows that the copy made, with the special tokens in place of the stand-ins."""
        return [
            replace(window, input_ids=[self._ids.get(token, token) for token in window.input_ids]) for window in windows
        ]


def find_commands(tokenizer: "PreTrainedTokenizerBase") -> Commands:
    """Return the commands of a tokenizer. The copy of the tokenizer is made once."""
    with _lock:
        if tokenizer not in _known:
            _known[tokenizer] = Commands(tokenizer)
        return _known[tokenizer]


def has_special_token(tokenizer: "PreTrainedTokenizerBase", text: str) -> bool:
    """Return whether a text contains a special token of a tokenizer."""
    return any(token in text for token in tokenizer.all_special_tokens)


def check_no_stand_ins(texts: Sequence[str]) -> None:
    """Raise RequestError if a text contains what stand-ins begin with: it could be read as a special token."""
    for position, text in enumerate(texts):
        if _OPEN in text:
            raise RequestError(
                f"Text {position + 1} contains U+FDD0, which Unicode reserves: it is no character.\nRemove it.",
                position=position,
            )


def _copy_tokenizer(tokenizer: Any) -> Any:
    if isinstance(tokenizer, PlainTokenizer):
        return tokenizer.copy()
    from medvllm.loading.tokenizer.thread_safe import copy_tokenizer

    return copy_tokenizer(tokenizer)


def _add_stand_ins(tokenizer: Any, stand_ins: dict[str, str], special: dict[str, int]) -> dict[int, int]:
    """Make a tokenizer read stand-ins, each with the stripping of its special token; return the id for that of each."""
    from tokenizers import AddedToken

    declared = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    added = []
    for token, stand_in in stand_ins.items():
        like = declared.get(token)
        strips = {side: bool(getattr(like, side, False)) for side in ("lstrip", "rstrip")}
        added.append(AddedToken(stand_in, special=False, normalized=False, single_word=False, **strips))
    tokenizer.add_tokens(added)
    if not tokenizer.is_fast:  # it splits a text at these tokens, and not at the special ones any more
        tokenizer.tokens_trie = type(tokenizer.tokens_trie)(stand_ins.values())
    return {tokenizer.convert_tokens_to_ids(stand_in): special[token] for token, stand_in in stand_ins.items()}

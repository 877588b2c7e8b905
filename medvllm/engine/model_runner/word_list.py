"""Texts that are split into words before the tokenizer reads them, by the caller or by the entry's word pattern."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvllm.word_patterns import find_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WordList:
    """A text and its words. The tokenizer reads each word on its own.

    Attributes:
        text: The text.
        offsets: The start and end of each word in the text.
        is_callers: Whether the caller gave the words, so that an answer names them by their positions.
    """

    text: str
    offsets: tuple[tuple[int, int], ...]
    is_callers: bool = False

    @property
    def words(self) -> list[str]:
        """The words."""
        return [self.text[start:end] for start, end in self.offsets]

    def find_read(self, end: int) -> tuple[tuple[int, int], ...]:
        """Return the parts of the text up to an offset that words cover. Blanks between words count as read."""
        parts: list[tuple[int, int]] = []
        for start, stop in self.offsets:
            stop = min(stop, end)
            if start >= stop:
                continue
            before = parts[-1][1] if parts else 0
            if self.text[before:start].strip():
                parts.append((start, stop))
            else:
                parts[-1:] = [(parts[-1][0] if parts else 0, stop)]
        if parts and not self.text[parts[-1][1] : end].strip():
            parts[-1] = (parts[-1][0], end)
        return tuple(parts) or (((0, end),) if end and not self.text[:end].strip() else ())


def join_words(words: Sequence[str]) -> WordList:
    """Return words as a text in which one blank stands between two words."""
    offsets, start = [], 0
    for word in words:
        offsets.append((start, start + len(word)))
        start += len(word) + 1
    return WordList(" ".join(words), tuple(offsets), is_callers=True)


def split_by_pattern(text: str, pattern: str, position: int) -> WordList:
    """Return the matches of an entry's word pattern as the words of a text. Errors are those of `find_words`."""
    return WordList(text, find_words(text, pattern, position))


def find_front(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what must stand before a word so that it is read as in a running text: a blank, or nothing.

    A byte-level tokenizer without a prefix space has other pieces for a word behind a blank than for the word alone.
    """

    def read(text: str | list[str]) -> list[int]:
        ids = tokenizer(text, is_split_into_words=isinstance(text, list), add_special_tokens=False)["input_ids"]
        return list(ids)

    running, behind_blank = read("no no"), read([" no"])
    needs_blank = read(["no", "no"]) != running and running[-len(behind_blank) :] == behind_blank
    return " " if needs_blank else ""

"""Joins labelled words into spans."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from medvllm.label_schemes import Mark


class LabelledWord(NamedTuple):
    """A word of a text with its label.

    Attributes:
        start: The offset of its first character, in Unicode code points.
        end: The offset after its last character.
        mark: What its label says; None if it is in no entity.
        score: The probability of the label.
        crossed: Whether a piece of the tokenizer crosses from the word before into this one.
        number: The position of the word among the words that the caller gave; None for a text.
    """

    start: int
    end: int
    mark: Mark | None
    score: float
    crossed: bool = False
    number: int | None = None


@dataclass(frozen=True)
class Span:
    """A labelled part of a text.

    Attributes:
        start: The offset of its first character, in Unicode code points.
        end: The offset after its last character.
        label: What it is, for example "PATIENT".
        score: The lowest probability among the labels of its words.
        text: Its characters.
    """

    start: int
    end: int
    label: str
    score: float
    text: str


@dataclass(frozen=True)
class WordSpan(Span):
    """A labelled part of a list of words. Its offsets are those in the words with one blank between two of them.

    Attributes:
        first_word: The position of its first word in the list, from 0.
        last_word: The position of its last word.
    """

    first_word: int
    last_word: int


def find_spans(words: Iterable[LabelledWord], text: str) -> list[Span]:
    """Return the spans that the labelled words of `text` make. The words must be in order.

    A word in the middle or at the end of an entity without a beginning starts a span, so that a missing B does not
    hide an entity. Without positions (the scheme IO), neighbours of one type are one span, because the labels cannot
    separate them. Two words of one type that share a piece are one span in any scheme: the piece has one label.
    """
    groups: list[list[LabelledWord]] = []
    is_open = is_last = False
    for word in words:
        if word.mark is None:
            is_open = is_last = False
            continue
        is_same = is_last and _kind(groups[-1][-1]) == word.mark.kind
        if is_same and (word.crossed or (is_open and word.mark.place not in "BS")):
            groups[-1].append(word)
        else:
            groups.append([word])
        is_last = True
        is_open = word.mark.place not in "ES"
    return [_span(group, text) for group in groups]


def _kind(word: LabelledWord) -> str | None:
    return word.mark.kind if word.mark else None


def _span(words: list[LabelledWord], text: str) -> Span:
    first, last = words[0], words[-1]
    start, end, score = first.start, last.end, min(word.score for word in words)
    if first.number is None or last.number is None:
        return Span(start, end, _kind(first) or "", score, text[start:end])
    return WordSpan(start, end, _kind(first) or "", score, text[start:end], first.number, last.number)

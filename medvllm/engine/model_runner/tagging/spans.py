"""Decodes the labels of words into spans, for every label scheme."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

# Scheme -> the prefixes that its labels may have. E and S are other names of L and U.
_PREFIXES = {"IO": "", "BIO": "BI", "BILOU": "BILUES"}
_BEGIN, _END = "BUS", "LEUS"
_UNNAMED = "ENTITY"  # for a tagger with one type, whose labels are just B and I


class Word(NamedTuple):
    """A word of a text with its label. The offsets count Unicode code points; `end` is exclusive."""

    start: int
    end: int
    label: str
    score: float


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


def infer_scheme(labels: Iterable[str]) -> str:
    """Return the label scheme that a model's labels follow: "IO", "BIO" or "BILOU"."""
    prefixes = {label[0] for label in labels if label[1:2] == "-" or label in ("B", "I")}
    return "BILOU" if prefixes & set("LUES") else "BIO" if prefixes & set("BI") else "IO"


def decode_labels(words: Iterable[Word], scheme: str, text: str) -> list[Span]:
    """Return the spans that the labels of the words of `text` describe. The words must be in order.

    A continuation label without a beginning starts a span, so that a missing B does not hide an entity. Under IO,
    neighbours with the same label are one span, because the scheme cannot separate them.
    """
    spans: list[Span] = []
    is_open = False
    for word in words:
        prefix, label = _split_label(word.label, _PREFIXES[scheme])
        if label is None:
            is_open = False
            continue
        if is_open and prefix not in _BEGIN and spans[-1].label == label:
            start, score = spans[-1].start, min(spans[-1].score, word.score)
            spans[-1] = Span(start, word.end, label, score, text[start : word.end])
        else:
            spans.append(Span(word.start, word.end, label, word.score, text[word.start : word.end]))
        is_open = prefix not in _END
    return spans


def _split_label(label: str, prefixes: str) -> tuple[str, str | None]:
    """Return a label's prefix (I if the scheme has none) and its type (None if it is outside of any span)."""
    if label in ("O", "0"):
        return "O", None
    prefix, dash, kind = label.partition("-")
    if len(prefix) == 1 and prefix in prefixes and (kind or not dash):
        return prefix, kind or _UNNAMED
    return "I", label

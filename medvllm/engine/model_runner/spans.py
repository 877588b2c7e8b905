"""Labels of words -> spans, under every label scheme."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

# Scheme -> the letters that a label may begin with. E and S are what others call L and U.
_PLACES = {"IO": "", "BIO": "BI", "BILOU": "BILUES"}
_BEGIN, _END = "BUS", "LEUS"
_UNNAMED = "ENTITY"  # for a tagger of one type, whose labels are B and I alone


class Word(NamedTuple):
    """A word of a text with the label it got: offsets in Unicode code points, `end` behind the last."""

    start: int
    end: int
    label: str
    score: float


@dataclass(frozen=True)
class Span:
    """A labelled stretch of a text: offsets in Unicode code points, `end` behind the last.

    `score` is the lowest probability among the labels of its words.
    """

    start: int
    end: int
    label: str
    score: float


def scheme_of(labels: Iterable[str]) -> str:
    """Return the scheme that a label map is written in, for a tagger whose entry does not say."""
    places = {label[0] for label in labels if label[1:2] == "-" or label in ("B", "I")}
    return "BILOU" if places & set("LUES") else "BIO" if places & set("BI") else "IO"


def decode(words: Iterable[Word], scheme: str) -> list[Span]:
    """Return the spans that the labels of a text's words, in order, describe.

    A label that continues nothing begins a span: what a model found is not dropped for a missing B. Under IO,
    neighbours of one label cannot be told apart and are one span.
    """
    spans: list[Span] = []
    is_open = False
    for word in words:
        place, label = _parts(word.label, _PLACES[scheme])
        if label is None:
            is_open = False
            continue
        if is_open and place not in _BEGIN and spans[-1].label == label:
            spans[-1] = Span(spans[-1].start, word.end, label, min(spans[-1].score, word.score))
        else:
            spans.append(Span(word.start, word.end, label, word.score))
        is_open = place not in _END
    return spans


def _parts(label: str, places: str) -> tuple[str, str | None]:
    """Return a label's place in its span, I where the scheme has none, and what it names: None for outside."""
    if label in ("O", "0"):
        return "O", None
    place, dash, kind = label.partition("-")
    if len(place) == 1 and place in places and (kind or not dash):
        return place, kind or _UNNAMED
    return "I", label

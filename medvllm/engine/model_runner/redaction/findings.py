"""What a redaction covers in a text: every word that is likely to identify someone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medvllm.engine.model_runner.redaction.extents import Extents, has_letter_or_digit
from medvllm.engine.model_runner.redaction.marks import without_marks
from medvllm.engine.model_runner.tagging.tagged_text import TaggedText


@dataclass(frozen=True)
class Finding:
    """A part of a text that is to be redacted.

    Attributes:
        start: The offset of its first character.
        end: The offset after its last character.
        label: The likeliest label of its words.
        score: The highest probability among its pieces that a piece is not outside.
    """

    start: int
    end: int
    label: str
    score: float


def find_unread(tagged: TaggedText) -> int | None:
    """Return the offset of the first letter or digit that is in no piece of a text; None if there is none."""
    read = bytearray(len(tagged.text))
    for start, end in tagged.places:
        read[start:end] = b"\1" * (end - start)
    offset = read.find(0)
    while offset != -1:
        if tagged.text[offset].isalnum():
            return offset
        offset = read.find(0, offset + 1)
    return None


def find_likely(
    tagged: TaggedText, wanted: Sequence[str], threshold: float, marks: Sequence[tuple[int, int]]
) -> list[Finding]:
    """Return the parts of a text to redact, in order. They do not overlap, and no word is cut.

    A word is redacted if one of its pieces is likely enough not to be outside, or if it has a letter or digit that
    the vocabulary lacks: such a piece tells the model nothing. A sign is redacted only if that is likelier than not.

    Args:
        tagged: What the model says of the text.
        wanted: The labels that count. The others are outside.
        threshold: How likely, from 0 to 1, a piece must be not to be outside.
        marks: Where marks stand that pass unharmed.
    """
    import numpy as np

    kinds = [mark.kind if mark else None for mark in tagged.labels.marks]
    sums = np.array([[kind == label for label in wanted] for kind in kinds], dtype=np.float32)
    likely = tagged.probabilities @ sums
    scores = likely.sum(1)
    outside = tagged.probabilities[:, [kind is None for kind in kinds]].sum(1)
    hot = (scores >= threshold) | np.array(tagged.unknown, dtype=bool)
    if not hot.any():
        return []
    is_likelier = (scores >= threshold) & (scores >= outside)
    extents = Extents(tagged.text)
    words: dict[tuple[int, int], _Word] = {}
    for word in tagged.words:
        tells = has_letter_or_digit(tagged.text[word.start : word.end])
        if pieces := [i for i in word.pieces if (hot if tells else is_likelier)[i]]:
            for place in extents.words(word.start, word.end):
                for i in pieces:
                    words.setdefault(place, _Word(wanted)).add(likely[i].tolist(), float(scores[i]))
    found = [
        Finding(start, end, word.label, word.score)
        for place, word in sorted(words.items(), key=lambda item: item[0])
        for start, end in without_marks(*place, marks)
    ]
    return _merge(found, extents)


class _Word:
    """What the pieces of a word say together."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels, self._sums, self.score = labels, [0.0] * len(labels), 0.0

    def add(self, likely: Sequence[float], score: float) -> None:
        self._sums = [a + b for a, b in zip(self._sums, likely, strict=True)]
        self.score = min(max(self.score, score), 1.0)

    @property
    def label(self) -> str:
        return self._labels[self._sums.index(max(self._sums))]


def _merge(found: Sequence[Finding], extents: Extents) -> list[Finding]:
    """Return neighbours with the same label as one."""
    merged: list[Finding] = []
    for each in found:
        last = merged[-1] if merged else None
        if last and last.label == each.label and extents.is_gap(last.end, each.start):
            merged[-1] = replace(last, end=each.end, score=max(last.score, each.score))
        else:
            merged.append(each)
    return merged

"""A text in parts: where spans begin and end, and what was not read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

TINTS = 8


class Part(NamedTuple):
    """A part of a text that is in the same spans from its beginning to its end."""

    text: str
    spans: Sequence[Mapping[str, Any]]  # the longest first
    ending: Sequence[Mapping[str, Any]]  # those of them that end with it
    is_read: bool


def cut(text: str, spans: Iterable[Mapping[str, Any]], read: Iterable[Sequence[int]] | None = None) -> list[Part]:
    """Return the parts of a text, in order. Spans may overlap: none is dropped.

    Args:
        text: The text.
        spans: Records with `start` and `end`, in code points.
        read: What the model read, as pairs of start and end; None for all of it.
    """
    ordered = sorted(spans, key=lambda span: (span["start"], -span["end"]))
    ranges = [(0, len(text))] if read is None else [(start, end) for start, end in read]
    places = {0, len(text)}
    places.update(span[side] for span in ordered for side in ("start", "end"))
    places.update(place for each in ranges for place in each)
    edges = sorted(places)
    parts = []
    for start, end in zip(edges, edges[1:], strict=False):
        inside = [span for span in ordered if span["start"] <= start and end <= span["end"]]
        ending = [span for span in inside if span["end"] == end]
        is_read = not text[start:end].strip() or any(first <= start and end <= last for first, last in ranges)
        parts.append(Part(text[start:end], inside, ending, is_read))
    return parts


def tints_of(labels: Iterable[str]) -> dict[str, int]:
    """Return the number of the colour of each label, in the order in which they come first."""
    return {label: number % TINTS for number, label in enumerate(dict.fromkeys(labels))}

"""A text in parts: where spans begin and end, and what was not read."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

TINTS = 8


class Part(NamedTuple):
    """A part of a text that is in the same spans from its beginning to its end."""

    text: str
    spans: Sequence[Mapping[str, Any]]  # the longest first
    ending: Sequence[Mapping[str, Any]]  # those of them that end with it
    is_read: bool


def cut(text: str, spans: Iterable[Mapping[str, Any]], read: Iterable[Sequence[int]] | None = None) -> list[Part]:
    """Return the parts of a text, in order. Spans may overlap; an empty one is in no part.

    Args:
        text: The text.
        spans: Records with `start` and `end`, in code points.
        read: What the model read, as pairs of start and end; None for all of it.
    """
    ordered = sorted(spans, key=lambda span: (span["start"], -span["end"]))
    ranges = [(0, len(text))] if read is None else [(start, end) for start, end in read]
    edges = {0, len(text)}
    edges.update(span[side] for span in ordered for side in ("start", "end"))
    edges.update(place for each in ranges for place in each)
    parts = []
    inside: list[Mapping[str, Any]] = []
    begun = passed = 0  # how many spans have begun, and how many ranges have ended
    for start, end in pairwise(sorted(edges)):
        inside = [span for span in inside if span["end"] > start]
        while begun < len(ordered) and ordered[begun]["start"] == start:
            inside += [ordered[begun]] if ordered[begun]["end"] > start else []
            begun += 1
        while passed < len(ranges) and ranges[passed][1] <= start:
            passed += 1
        is_read = passed < len(ranges) and ranges[passed][0] <= start
        part = text[start:end]
        ending = [span for span in inside if span["end"] == end]
        parts.append(Part(part, inside, ending, is_read or not part.strip()))
    return parts


def tints_of(labels: Iterable[str]) -> dict[str, int]:
    """Return the number of the colour of each label, in the order in which they come first."""
    return {label: number % TINTS for number, label in enumerate(dict.fromkeys(labels))}

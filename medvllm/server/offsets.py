"""Offsets in a text, counted as the client counts: not every language has strings of code points."""

from bisect import bisect_left, bisect_right
from typing import Literal

OffsetUnit = Literal["codepoint", "utf16", "utf8"]


class Offsets:
    """Converts offsets in code points to offsets of another unit.

    Args:
        text: The text.
        unit: What the client counts: "codepoint" as Python does, "utf16" as JavaScript, Java and C# do, or "utf8" as Go
            and Rust do.
    """

    def __init__(self, text: str, unit: OffsetUnit) -> None:
        self.length = self._size = len(text)
        # Behind each of these characters, offsets are larger by so much than the code points before them.
        self._places: list[int] = []
        self._extra = [0]
        if unit == "codepoint" or text.isascii():
            return
        extra = 0
        for place, character in enumerate(text):
            code = ord(character)
            more = (code > 0xFFFF) if unit == "utf16" else (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)
            if more:
                extra += more
                self._places.append(place + 1)
                self._extra.append(extra)
        self.length += extra

    def __call__(self, offset: int) -> int:
        """Return the offset in the client's unit."""
        return offset + self._extra[bisect_right(self._places, offset)]

    def to_codepoints(self, offset: int) -> int | None:
        """Return how many code points are before an offset; None inside of a character or behind the text."""
        before = bisect_left(range(self._size + 1), offset, key=self)
        return before if before <= self._size and self(before) == offset else None

"""What a model read of a text."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Coverage:
    """What the model read of a text.

    Attributes:
        read: The parts of the text that were read, as pairs of start and end in Unicode code points. Of a pair of
            texts, those of the second text.
        tokens: The number of tokens, without special tokens.
        unknown: How many of them stand for words that the vocabulary lacks.
        windows: The number of windows.
        truncated: Whether the end of the text was cut off.
    """

    read: tuple[tuple[int, int], ...]
    tokens: int
    unknown: int
    windows: int
    truncated: bool

    def without_prefix(self, length: int) -> "Coverage":
        """Return the coverage of a text in front of which a prompt of `length` characters was read."""
        if not length:
            return self
        read = tuple((max(start - length, 0), end - length) for start, end in self.read if end > length)
        return replace(self, read=read)

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the coverage, for JSON."""
        return vars(self) | {"read": [list(part) for part in self.read]}

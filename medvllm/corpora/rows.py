"""The rows of a corpus, and chunks of them that fit into memory."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Id = str | int | float | bool | None

# A chunk holds this much text, or a single longer text: enough for full batches, and little beside a model.
CHUNK_CHARACTERS = 200_000
_CHUNK_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Row:
    """One text of a corpus.

    Attributes:
        text: The text; a pair of texts; or what a task takes instead of a text, such as a list of words.
        place: Where it stands, for messages: "line 3 of 'notes.txt'".
        id: The id that the corpus gives it.
        extra: Further columns that were asked for, by name.
    """

    text: Any
    place: str
    id: Id = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def split_into_chunks(rows: Iterable[Row], characters: float = CHUNK_CHARACTERS) -> Iterator[list[Row]]:
    """Yield the rows in lists of at most so many characters. A longer text is alone in its list."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        length = count_characters(row.text)
        if chunk and (size + length > characters or (len(chunk) >= _CHUNK_ROWS and characters < float("inf"))):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += length
    if chunk:
        yield chunk


def count_characters(text: Any) -> int:
    """Return the number of characters of a text, or of all texts in a pair, a list of words or a conversation."""
    if isinstance(text, str):
        return len(text)
    if isinstance(text, Mapping):
        return sum(map(count_characters, text.values()))
    return sum(map(count_characters, text)) if isinstance(text, (list, tuple)) else 0

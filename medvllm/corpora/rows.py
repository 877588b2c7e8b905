"""The rows of a corpus, and chunks of them that fit into memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from medvllm.errors import RequestError

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


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read.

    Attributes:
        place: Where it stands.
        error: Why it cannot be read. It has no text of the row.
    """

    place: str
    error: RequestError


def row_or_bad(make: Callable[..., Row], *given: Any, place: str) -> Row | BadRow:
    """Return the row that `make` makes of what is given and of its place, or a bad row if it raises RequestError."""
    try:
        return make(*given, place)
    except RequestError as error:
        return BadRow(place, error.with_traceback(None))  # the frames of a traceback hold the text


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

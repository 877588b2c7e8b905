"""Parts of a corpus: so many rows each, in the order of the corpus."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from medvllm.corpora.rows import BadRow, Row, count_characters
from medvllm.errors import MedVLLMError

# Of a part. A longer text is alone in its part.
_MOST_CHARACTERS = 20_000_000


@dataclass(frozen=True)
class Unanswered:
    """A row without an answer.

    Attributes:
        row: Its position in the corpus, from 1.
        place: Where it stands.
        reason: Why it has none. No text of the row.
    """

    row: int
    place: str
    reason: str

    @classmethod
    def of(cls, row: int, place: str, error: Exception) -> "Unanswered":
        """Return the row that an error is about."""
        return cls(row, place, str(error).partition("\n")[0])


def error_of_all(error: MedVLLMError, what: str) -> MedVLLMError:
    """Return the error of the first of several rows, none of which can be used: what "the rows can be read" says."""
    return type(error)(f"None of {what}. The first:\n{error}", **vars(error))


@dataclass(frozen=True)
class Part:
    """Rows that are answered together.

    Attributes:
        number: The number of the part, from 0.
        first: The position of its first row in the corpus, from 1.
        rows: Its rows, also those that cannot be read.
    """

    number: int
    first: int
    rows: tuple[Row | BadRow, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of what was read: ids, texts and further columns. It does not depend on the kind of file."""
        lines = (_content(row) for row in self.rows)
        return sha256("\n".join(lines).encode()).hexdigest()

    def numbered(self, *, has_ids: bool) -> tuple[list[tuple[int, Row]], list[Unanswered]]:
        """Return the rows with their positions, and those that have no answer.

        Args:
            has_ids: Whether rows of the corpus have ids. If they have not, the id of a row is its position.
        """
        good, bad = [], []
        for position, row in enumerate(self.rows, self.first):
            if isinstance(row, BadRow):
                bad.append(Unanswered.of(position, row.place, row.error))
            elif has_ids and row.id is None:
                bad.append(Unanswered(position, row.place, f"There is no id in {row.place}, but other rows have one."))
            else:
                good.append((position, row if has_ids else replace(row, id=position)))
        return good, bad


def cut_into_parts(rows: Iterable[Row | BadRow], size: int, *, keeps_documents: bool) -> Iterator[Part]:
    """Yield the parts of a corpus.

    Args:
        rows: The rows.
        size: How many rows a part has. One with very long texts has fewer.
        keeps_documents: Whether rows that follow each other and have one id stay together. A part may then have more.
    """
    held: list[Row | BadRow] = []
    characters = number = 0
    first = 1
    last: Row | None = None  # of the part that can be read
    for row in rows:
        length = count_characters(row.text) if isinstance(row, Row) else 0
        is_full = len(held) >= size or characters + length > _MOST_CHARACTERS
        if held and is_full and not (keeps_documents and _may_be_one_document(last, row)):
            yield Part(number, first, tuple(held))
            number, first, held, characters, last = number + 1, first + len(held), [], 0, None
        held.append(row)
        last = row if isinstance(row, Row) else last
        characters += length
    if held:
        yield Part(number, first, tuple(held))


def _may_be_one_document(last: Row | None, row: Row | BadRow) -> bool:
    """Return whether a row may be of the document of an earlier one. Of one that cannot be read, the next one tells."""
    if last is None or last.id is None:
        return False
    return isinstance(row, BadRow) or str(last.id) == str(row.id)


def _content(row: Row | BadRow) -> str:
    given: Any = None if isinstance(row, BadRow) else [row.id, row.text, dict(row.extra)]
    return json.dumps(given, default=str)

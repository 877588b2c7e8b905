"""What a batch will read: the whole corpus is read once before the work, without a model."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain

from medvllm.corpora.repeated_ids import RepeatedIds
from medvllm.corpora.rows import BadRow, Id, Row
from medvllm.engine.model_runner.batch.documents import SharedDocuments, SplitDocuments
from medvllm.engine.model_runner.batch.part import Part, cut_into_parts, error_of_all
from medvllm.engine.model_runner.batch.source import Source
from medvllm.errors import RequestError


@dataclass(frozen=True)
class Plan:
    """The parts of a corpus.

    Attributes:
        source: What is read.
        size: How many rows a part has.
        keeps_documents: Whether the rows of a document stay together.
        counts: How many rows each part has.
        digests: The digest of each part.
        has_ids: Whether rows have ids.
        has_number_ids: Whether all ids are whole numbers of at most 64 bits, or there are none.
    """

    source: Source
    size: int
    keeps_documents: bool
    counts: "array[int]"
    digests: tuple[str, ...]
    has_ids: bool
    has_number_ids: bool

    @property
    def rows(self) -> int:
        """How many rows the corpus has."""
        return sum(self.counts)

    @property
    def digest(self) -> str:
        """The SHA-256 of the digests of all parts."""
        return sha256("\n".join(self.digests).encode()).hexdigest()

    def parts(self) -> Iterator[Part]:
        """Read the corpus again, and yield its parts.

        Raises:
            RequestError: It has changed since it was planned.
        """
        rows = 0
        for part in cut_into_parts(self.source.rows(), self.size, keeps_documents=self.keeps_documents):
            if part.number >= len(self.digests) or part.digest != self.digests[part.number]:
                raise _changed_meanwhile(part.first)
            rows += len(part.rows)
            yield part
        if rows != self.rows:
            raise _changed_meanwhile(rows + 1)


def make_plan(source: Source, size: int, *, has_documents: bool, keeps_documents: bool) -> Plan:
    """Read a corpus, and return the plan of its parts.

    Args:
        source: What is read.
        size: How many rows a part has.
        has_documents: Whether an id names a document that may have several rows, and answers depend on it.
        keeps_documents: Whether the rows of a document must be in one part.

    Raises:
        RequestError: Files cannot be read, no row can be used, or a document is in several files or parts.
    """
    counts, digests = array("Q"), []
    ids, split = _Ids(), SplitDocuments() if keeps_documents else None
    repeated = None if has_documents else RepeatedIds()
    shared = SharedDocuments(source) if has_documents and len(source.names) > 1 else None
    first_bad: BadRow | None = None
    read = (rows if shared is None else shared.watch(at, rows) for at, rows in source.each(warns=True))
    for part in cut_into_parts(chain.from_iterable(read), size, keeps_documents=keeps_documents):
        rows = [row for row in part.rows if isinstance(row, Row)]
        ids.add(rows)
        if repeated is not None:
            repeated.add(rows)
        if split is not None:
            split.add(rows)
        if first_bad is None and len(rows) < len(part.rows):
            first_bad = next(row for row in part.rows if isinstance(row, BadRow))
        counts.append(len(part.rows))
        digests.append(part.digest)
    if not ids.rows:
        if first_bad is not None:
            raise error_of_all(first_bad.error, "the rows can be read")
        raise RequestError(f"There is no text in {', '.join(map(repr, source.shown_names))}.")
    if shared is not None:
        shared.check()
    if split is not None:
        split.check()
    return Plan(source, size, keeps_documents, counts, tuple(digests), ids.has_any, ids.are_numbers or not ids.has_any)


class _Ids:
    """What kind of ids there are."""

    def __init__(self) -> None:
        self.rows, self.has_any, self.are_numbers = 0, False, True

    def add(self, rows: list[Row]) -> None:
        self.rows += len(rows)
        given = [row.id for row in rows if row.id is not None]
        self.has_any = self.has_any or bool(given)
        self.are_numbers = self.are_numbers and all(map(_is_number, given))


def _is_number(id: Id) -> bool:
    return type(id) is int and -(2**63) <= id < 2**63


def _changed_meanwhile(row: int) -> RequestError:
    return RequestError(
        f"The input has changed while it was read: its rows from {row:,} on are others than at the beginning.\n"
        "Wait until it is complete, then begin anew with another folder, or with: --restart"
    )

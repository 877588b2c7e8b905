"""Documents of a corpus: rows with one id, for a redaction that treats them as one."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from hashlib import blake2b

from medvllm.corpora.reading.urls import shown_name
from medvllm.corpora.rows import BadRow, Row
from medvllm.engine.model_runner.batch.source import Source
from medvllm.errors import RequestError


class SharedDocuments:
    """Finds ids that rows of two files have. Twelve bytes are kept for each document of a file.

    Args:
        source: The files, folders and URLs.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._keys, self._positions = array("Q"), array("I")

    def watch(self, position: int, rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
        """Yield the rows of a file, and look at their ids.

        Args:
            position: The position of the file.
            rows: Its rows.
        """
        last = None
        for row in rows:
            if (key := _key_of(row)) not in (None, last):
                self._keys.append(last := key)
                self._positions.append(position)
            yield row

    def check(self) -> None:
        """Raise RequestError if two files have an id in common."""
        import numpy as np

        keys, positions = np.asarray(self._keys), np.asarray(self._positions)
        order = np.argsort(keys, kind="stable")  # of equal ones, the first file first
        keys, positions = keys[order], positions[order]
        shared = np.flatnonzero((keys[1:] == keys[:-1]) & (positions[1:] != positions[:-1]))
        if shared.size:
            at = int(shared[0])
            self._refuse(int(keys[at]), *(self._source.names[each] for each in positions[at : at + 2]))

    def _refuse(self, key: int, name: str, other: str) -> None:
        rows = replace(self._source, names=(other,)).rows()
        place = next((row.place for row in rows if _key_of(row) == key), repr(shown_name(other)))
        raise RequestError(
            f"The id in {place} is that of a row of {shown_name(name)!r} too, so both would be one document.\n"
            "If they are one, put its rows into one file. If not, give each an id of its own. Those of notes have the "
            "name of their folder in them if you put the folders into one, and name that one."
        )


class SplitDocuments:
    """Finds documents whose rows are in several parts. Eight bytes are kept for each document."""

    def __init__(self) -> None:
        self._keys = array("Q")

    def add(self, rows: Iterable[Row]) -> None:
        """Look at the rows of a part."""
        self._keys.extend({key for row in rows if (key := _key_of(row)) is not None})

    def check(self) -> None:
        """Raise RequestError if a document is in several parts."""
        import numpy as np

        if len(np.unique(np.asarray(self._keys))) != len(self._keys):
            raise RequestError(
                "The rows of a document are in several parts, so one name could get two surrogates.\n"
                "Sort the input by the id, so that the rows of each document follow each other."
            )


def _key_of(row: Row | BadRow) -> int | None:
    """Return a number of 64 bits for the id of a row; None if it has none."""
    if isinstance(row, BadRow) or row.id is None:
        return None
    return int.from_bytes(blake2b(str(row.id).encode("utf-8", "surrogateescape"), digest_size=8).digest())

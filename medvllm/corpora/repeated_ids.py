"""Ids that several rows of a corpus have."""

import logging
from collections.abc import Iterable

from medvllm.corpora.rows import Row

_LOG = logging.getLogger(__name__)
_MOST = 1_000_000  # ids that are remembered, as numbers of 64 bits


class RepeatedIds:
    """Logs a warning, once, if a row has the id of an earlier one: nobody could tell their answers apart."""

    def __init__(self) -> None:
        self._seen: set[int] | None = set()

    def add(self, rows: Iterable[Row]) -> None:
        """Look at further rows. Behind a million ids, no more are remembered."""
        for row in rows:
            if self._seen is None or row.id is None:
                continue
            key = hash(str(row.id))  # the number 7 and the text "7" look alike in a table
            if key in self._seen:
                _LOG.warning(
                    "The id in %s is that of an earlier row, so their answers cannot be told apart. Name a column that "
                    "tells them apart with: --id-column",
                    row.place,
                )
                self._seen = None
            elif len(self._seen) < _MOST:
                self._seen.add(key)

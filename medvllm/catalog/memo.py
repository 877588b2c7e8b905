"""Results of look-ups in the stored catalogue, kept until the catalogue changes."""

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from medvllm.catalog.stores import DatabaseHandle, open_store

if TYPE_CHECKING:
    from medvllm.catalog.sql import SqlStore

T = TypeVar("T")

_MAX_RESULTS = 10_000


class LookupMemo:
    """Results by key. Any thread may call every method."""

    def __init__(self, database: DatabaseHandle) -> None:
        self._database = database
        # A change token, and results that were read at that token or later. They are replaced as one, so no lock is
        # needed.
        self._kept: tuple[Hashable, dict[Hashable, Any]] = (None, {})

    def get(self, key: Hashable, look: "Callable[[SqlStore], T]") -> T | None:
        """Return what `look` gives, called again only after a change; None while nothing has been stored yet."""
        token = self._database.change_token()
        if token is None:
            store = self._database.reader()
            return None if store is None else look(store)
        kept_at, results = self._kept
        if token != kept_at or len(results) >= _MAX_RESULTS:
            results = {}
            self._kept = token, results
        if key not in results:
            results[key] = look(open_store(self._database.location()))
        found: T = results[key]
        return found

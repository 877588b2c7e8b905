"""The databases that this process has open, and the one that a stored catalogue uses."""

import os
from collections.abc import Hashable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medvllm import settings
from medvllm.catalog.location import TEXTS, has_content, is_named, is_there, location
from medvllm.catalog.reason import check_reason
from medvllm.errors import SettingError

if TYPE_CHECKING:
    from medvllm.catalog.sql import SqlStore
    from medvllm.catalog.sql.transaction import Transaction
    from medvllm.processes import RecordStore

_stores: "dict[Path | str, SqlStore]" = {}  # by location, each opened once


def open_store(where: Path | str) -> "SqlStore":
    """Return the store of a SQLite file or a postgresql:// URL. Threads and catalogues of this process share it."""
    from medvllm.catalog.sql import SqlStore

    return _stores.get(where) or _stores.setdefault(where, SqlStore(where))


def close_all() -> None:
    """Close every database that this process has open. A later call opens it again."""
    while _stores:
        _stores.popitem()[1].database.close()


class DatabaseHandle:
    """The database of one stored catalogue: the one that MEDVLLM_CATALOG names, or a fixed one.

    Args:
        fixed: A SQLite file or a postgresql:// URL, or None to follow the settings.
    """

    def __init__(self, fixed: Path | str | None) -> None:
        self._fixed = fixed

    def location(self) -> Path | str:
        """Return the SQLite file or the URL."""
        return self._fixed or location(TEXTS())

    @property
    def shown(self) -> str:
        """The file, or the URL without its password; the setting as it is written if that is not valid."""
        from medvllm.catalog.address import Address

        try:
            where = self.location()
            return str(where) if isinstance(where, Path) else Address.of(where).shown
        except SettingError as error:
            return str(error.value or settings.CATALOG.name)  # an error in a settings file has no value

    def change_token(self) -> Hashable:
        """Return a value that changes whenever any process changes the catalogue, or None if there is no catalogue."""
        where = self.location()
        store = _stores.get(where)
        if store is None and (not isinstance(where, Path) or has_content(where)):
            store = open_store(where)
        number = None if store is None else store.database.change_token()  # None too when the file has gone
        return None if number is None else (where, number)

    def reader(self) -> "SqlStore | None":
        """Return the store to read from, or None while nothing has been stored yet.

        Raises:
            CatalogError: The file that MEDVLLM_CATALOG names does not exist, or is not a file.
        """
        where = self.location()
        if isinstance(where, Path) and not is_there(where, named=self._fixed is not None or is_named()):
            return None
        return open_store(where)

    def writer(self) -> "SqlStore":
        """Return the store to write to. Its file is created by the first change, unless MEDVLLM_CATALOG names it."""
        return self.reader() or open_store(self.location())

    def create(self) -> bool:
        """Create an empty catalogue if there is none, and return whether one was created."""
        return open_store(self.location()).database.create()

    @contextmanager
    def begin(self, reason: str | None) -> "Iterator[Transaction]":
        """Give a transaction. Nobody else changes the catalogue meanwhile."""
        check_reason(reason)
        with self.writer().transaction() as transaction:
            yield transaction

    @contextmanager
    def begin_trial(self, reason: str | None) -> "Iterator[Transaction]":
        """Give a transaction that is rolled back at its end. It does not create a database."""
        check_reason(reason)
        if (store := self.reader()) is not None:
            with store.transaction() as transaction:
                transaction.is_kept = False
                yield transaction
            return
        from tempfile import TemporaryDirectory

        from medvllm.catalog.sql import SqlStore

        with TemporaryDirectory() as folder:
            empty = SqlStore(Path(folder) / "catalog.db")
            with closing(empty.database) as database:
                database.create()
                with empty.transaction() as transaction:
                    yield transaction

    def record_store(self) -> "RecordStore":
        """Return where the processes that share the catalogue record what they hold: beside its file, or in it."""
        where = self.location()
        if isinstance(where, Path):
            # A link in each of two homes may lead to the same file; and nothing is created on a share that is missing.
            home, file = settings.HOME(), Path(os.path.realpath(where))
            is_elsewhere = file.parent != Path(os.path.realpath(home)) and os.path.isfile(file)
            from medvllm.processes import RecordFolder

            return RecordFolder((file.parent if is_elsewhere else home) / "run", is_shared=is_elsewhere)
        from medvllm.catalog.sql.processes import Processes

        return Processes(open_store(where))

    def close(self) -> None:
        """Close the connections to the database. A later call opens others."""
        if (store := _stores.pop(self.location(), None)) is not None:
            store.database.close()

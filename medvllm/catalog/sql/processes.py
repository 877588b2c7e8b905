"""Notes of the processes that share a catalogue on a server; the server's clock tells how old they are."""

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from medvllm.catalog.sql.store import SqlStore
from medvllm.catalog.sql.tables import processes
from medvllm.processes.board import GONE_S, Kept

_MOST = 10_000  # notes


class Processes:
    """The table of notes of one database. CatalogError: it cannot be read or written."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Processes) and other._store is self._store

    def __hash__(self) -> int:
        return hash(id(self._store))

    def put(self, id: str, text: str) -> None:
        """Write a note in place of the one of that id, and take those away whose processes are long gone."""
        row = insert(processes).values(id=id, seen=func.now(), note=text)
        row = row.on_conflict_do_update(index_elements=["id"], set_={"seen": func.now(), "note": text})
        with self._store.database.noting() as connection:
            connection.execute(row)
            old = processes.c.seen < func.now() - timedelta(seconds=GONE_S)
            connection.execute(delete(processes).where(old))

    def remove(self, id: str) -> None:
        """Take a note away; one that is not there is no error."""
        with self._store.database.noting() as connection:
            connection.execute(delete(processes).where(processes.c.id == id))

    def kept(self) -> Iterator[Kept]:
        """Give every note."""
        age = func.extract("epoch", func.now() - processes.c.seen)
        with self._store.database.noting() as connection:
            rows = connection.execute(select(processes.c.id, processes.c.note, age.label("age")).limit(_MOST)).all()
        for row in rows:
            yield Kept(row.id, row.note.encode(), float(row.age), None)

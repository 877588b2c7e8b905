"""The records of the processes that share a catalogue on a server. The server's clock tells how old they are."""

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from medvllm.catalog.sql.store import SqlStore
from medvllm.catalog.sql.tables import processes
from medvllm.processes.record_store import GONE_S, StoredRecord

_MAX_RECORDS = 10_000  # records


class Processes:
    """The table of records of one database. Its methods raise CatalogError if it cannot be read or written."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Processes) and other._store is self._store

    def __hash__(self) -> int:
        return hash(id(self._store))

    def write(self, id: str, text: str) -> None:
        """Write a record in place of the one with that id, and remove those of processes that are long gone."""
        row = insert(processes).values(id=id, seen=func.now(), note=text)
        row = row.on_conflict_do_update(index_elements=["id"], set_={"seen": func.now(), "note": text})
        with self._store.database.writing_beside() as connection:
            connection.execute(row)
            old = processes.c.seen < func.now() - timedelta(seconds=GONE_S)
            connection.execute(delete(processes).where(old))

    def remove(self, id: str) -> None:
        """Remove a record, if it exists."""
        with self._store.database.writing_beside() as connection:
            connection.execute(delete(processes).where(processes.c.id == id))

    def read_all(self) -> Iterator[StoredRecord]:
        """Yield every record."""
        age = func.extract("epoch", func.now() - processes.c.seen)
        with self._store.database.writing_beside() as connection:
            rows = connection.execute(
                select(processes.c.id, processes.c.note, age.label("age")).limit(_MAX_RECORDS)
            ).all()
        for row in rows:
            yield StoredRecord(row.id, row.note.encode(), float(row.age), None)

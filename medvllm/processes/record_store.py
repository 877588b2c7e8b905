"""Where the records of processes are kept: a folder beside a catalogue's file, or a table of its database."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

HEARTBEAT_S = 60.0  # between two writes of a process that holds models
ALIVE_S = 180.0  # a process that cannot be checked counts as alive for so long after its last write
GONE_S = 86_400.0  # after which it is certainly gone


@dataclass(frozen=True)
class StoredRecord:
    """A record as it was read. Anybody may have written it."""

    id: str
    text: bytes
    age_s: float  # since its process last wrote it
    owner: int | None  # the user who owns the file


class RecordStore(Protocol):
    """A place for records, by their random ids. Its methods raise OSError or CatalogError if it cannot be used."""

    def write(self, id: str, text: str) -> None:
        """Write a record, replacing the one with that id as a whole."""

    def remove(self, id: str) -> None:
        """Remove a record, if it exists."""

    def read_all(self) -> Iterator[StoredRecord]:
        """Yield every record that can be read; none if the store does not exist yet."""
        ...

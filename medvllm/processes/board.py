"""Where notes lie: a folder beside a catalogue's file, or a table of its database."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

HEARTBEAT_S = 60.0  # between two signs of life of a process that holds models
ALIVE_S = 180.0  # after its last one a process that cannot be asked counts as alive for so long
GONE_S = 86_400.0  # after which it is surely gone


@dataclass(frozen=True)
class Kept:
    """A note as it lies there: anybody may have written it."""

    id: str
    text: bytes
    age_s: float  # since its process gave the last sign of life
    owner: int | None  # the user whose file it is


class Board(Protocol):
    """A place for notes by their random ids. OSError, CatalogError: it cannot be read or written."""

    def put(self, id: str, text: str) -> None:
        """Write a note, whole, in place of the one of that id."""

    def remove(self, id: str) -> None:
        """Take a note away; one that is not there is no error."""

    def kept(self) -> Iterator[Kept]:
        """Give every note that can be read; none where there is no place yet."""
        ...

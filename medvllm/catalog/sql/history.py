"""The history. Rows are only added, and each has a hash over itself and the row before it."""

import re
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

from sqlalchemy import Connection, insert, select, update

from medvllm.author import who
from medvllm.catalog.events import ACTIONS, Event
from medvllm.catalog.sql.tables import head, history
from medvllm.catalog.sql.texts import sha256, to_json
from medvllm.errors import CatalogError

FIRST = "0" * 64
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", re.ASCII)


def is_moment(at: object) -> TypeGuard[str]:
    """Return whether a value is a time as events have it: later times compare greater."""
    return isinstance(at, str) and _MOMENT.fullmatch(at) is not None


class Journal:
    """The events of one transaction. `write` adds them to the history and changes the catalogue's change number."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._length, self._hash = end_of(connection)
        last = connection.execute(select(history.c.at).where(history.c.seq == self._length)).scalar()
        self._last_at = last if is_moment(last) else ""
        self._change_number: int | None = None
        self._rows: list[dict[str, Any]] = []
        self.events: list[Event] = []

    def note(
        self,
        action: str,
        name: str | None = None,
        *,
        version: int | None = None,
        alias: str | None = None,
        reason: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Event:
        """Add an event and return it."""
        if action not in ACTIONS:
            raise ValueError(f"{action!r} is not an action of the history")
        self._length += 1
        clock = datetime.now(UTC).isoformat(timespec="microseconds")
        facts = dict(detail or {})
        if clock < self._last_at:  # times must not decrease; if a clock is behind, its own time is kept too
            facts["clock"], clock = clock, self._last_at
        self._last_at = clock
        number = version or None  # a model without an entry has version 0
        event = Event(self._length, clock, who(), socket.gethostname(), action, name, number, alias, reason, facts)
        self.events.append(event)
        if action != "loaded":  # a load does not make look-ups outdated
            self._change_number = self._length + 1
        record = to_json(event.to_dict())
        self._hash = sha256(self._hash + record)
        self._rows.append({"seq": self._length, "at": clock, "name": name, "record": record, "hash": self._hash})
        return event

    def write(self) -> None:
        """Write the events to the database."""
        if self._rows:
            self.connection.execute(insert(history), self._rows)
            values: dict[str, Any] = {"length": self._length, "hash": self._hash}
            if self._change_number is not None:
                values["change_number"] = self._change_number
            self.connection.execute(update(head).values(values))


def end_of(connection: Connection) -> tuple[int, str]:
    """Return number and hash of the last event.

    Raises:
        CatalogError: The catalogue does not say where its history ends.
    """
    found = connection.execute(select(head.c.length, head.c.hash)).all()
    if len(found) != 1 or type(found[0].length) is not int or not isinstance(found[0].hash, str):
        raise CatalogError(
            "The catalogue is damaged: it does not say where its history ends.\n"
            "To see what is wrong: medvllm history verify"
        )
    return found[0].length, found[0].hash

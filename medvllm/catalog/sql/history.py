"""The history. Rows are only added, and each has a hash over itself and the row before it."""

import json
import re
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TypeGuard

from sqlalchemy import Connection, Row, insert, select, update

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


def events(connection: Connection, name: str | None, since: str | None) -> Iterator[Event]:
    """Iterate over the events in their order.

    Args:
        connection: A connection in a transaction.
        name: Only events of this name.
        since: Only events from this moment on (UTC, ISO 8601).

    Raises:
        CatalogError: An event is not what was written.
    """
    query = select(history.c.seq, history.c.at, history.c.name, history.c.record).order_by(history.c.seq)
    if name is not None:
        query = query.where(history.c.name == name)
    if since is not None:
        query = query.where(history.c.at >= since)
    with connection.execute(query.execution_options(yield_per=1000)) as rows:  # closed even if the caller stops early
        for row in rows:
            event = event_of(row)
            if event is None:
                raise CatalogError(
                    f"The history is damaged: event {row.seq} is not what was written.\n"
                    "To see what else is wrong: medvllm history verify"
                )
            yield event


def event_of(row: Row[*tuple[Any, ...]]) -> Event | None:
    """Return the event of a row, or None if the row is not what was written."""
    try:
        event = Event(**json.loads(row.record))
        is_written = to_json(event.to_dict()) == row.record and _is_sound(event)
    except (ValueError, TypeError, RecursionError):
        return None
    return event if is_written and (row.seq, row.at, row.name) == (event.seq, event.at, event.name) else None


def _is_sound(event: Event) -> bool:
    """Return whether each field has the right type."""
    texts = event.at, event.who, event.machine, event.action
    others = event.name, event.alias, event.reason
    return (
        type(event.seq) is int
        and event.seq > 0
        and all(isinstance(text, str) for text in texts)
        and all(text is None or isinstance(text, str) for text in others)
        and (event.version is None or (type(event.version) is int and event.version > 0))
        and isinstance(event.detail, dict)
    )

"""The history: rows that are only added, each with a hash over itself and the row before."""

import hashlib
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
from medvllm.errors import CatalogError

FIRST = "0" * 64
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", re.ASCII)


def to_json(content: Any) -> str:
    """Return `content` in the one form that is stored and hashed: sorted, and in ASCII, which every database keeps."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: object) -> str:
    """Return the SHA-256 of a text, or of what somebody put in its place."""
    return hashlib.sha256(str(text).encode()).hexdigest()


def is_moment(at: object) -> TypeGuard[str]:
    """Return whether a time is in the form that events have, in which later ones are greater."""
    return isinstance(at, str) and _MOMENT.fullmatch(at) is not None


class Journal:
    """The changes of one transaction. `close` adds their rows, and moves on the catalogue's revision."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._length, self._hash = end_of(connection)
        last = connection.execute(select(history.c.at).where(history.c.seq == self._length)).scalar()
        self._last_at = last if is_moment(last) else ""
        self._revision: int | None = None
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
        told = dict(detail or {})
        if clock < self._last_at:  # events stand in the order of their times; a clock that is behind is noted
            told["clock"], clock = clock, self._last_at
        self._last_at = clock
        number = version or None  # what is not an entry has none
        event = Event(self._length, clock, who(), socket.gethostname(), action, name, number, alias, reason, told)
        self.events.append(event)
        if action != "loaded":  # what was looked up stands after a load
            self._revision = self._length + 1
        record = to_json(event.to_dict())
        self._hash = sha256(self._hash + record)
        self._rows.append({"seq": self._length, "at": clock, "name": name, "record": record, "hash": self._hash})
        return event

    def close(self) -> None:
        """Write what was noted; without it, nothing changes."""
        if self._rows:
            self.connection.execute(insert(history), self._rows)
            values: dict[str, Any] = {"length": self._length, "hash": self._hash}
            if self._revision is not None:
                values["revision"] = self._revision
            self.connection.execute(update(head).values(values))


def end_of(connection: Connection) -> tuple[int, str]:
    """Return the number and the hash of the last event; CatalogError: the catalogue does not say."""
    found = connection.execute(select(head.c.length, head.c.hash)).all()
    if len(found) != 1 or type(found[0].length) is not int or not isinstance(found[0].hash, str):
        raise CatalogError(
            "The catalogue is damaged: it does not say where its history ends.\n"
            "See what is wrong: medvllm history verify"
        )
    return found[0].length, found[0].hash


def events(connection: Connection, name: str | None, since: str | None) -> Iterator[Event]:
    """Give the events in their order: those of a model, those since a moment (UTC, ISO 8601), or all."""
    query = select(history.c.seq, history.c.at, history.c.name, history.c.record).order_by(history.c.seq)
    if name is not None:
        query = query.where(history.c.name == name)
    if since is not None:
        query = query.where(history.c.at >= since)
    with connection.execute(query.execution_options(yield_per=1000)) as rows:  # closed, read to its end or not
        for row in rows:
            event = event_of(row)
            if event is None:
                raise CatalogError(
                    f"The history is damaged: event {row.seq} is not what was written.\n"
                    "What else is wrong: medvllm history verify"
                )
            yield event


def event_of(row: Row[*tuple[Any, ...]]) -> Event | None:
    """Return the event of a row, or None where it is none that was written there."""
    try:
        event = Event(**json.loads(row.record))
        is_written = to_json(event.to_dict()) == row.record and _is_sound(event)
    except (ValueError, TypeError, RecursionError):
        return None
    return event if is_written and (row.seq, row.at, row.name) == (event.seq, event.at, event.name) else None


def _is_sound(event: Event) -> bool:
    """Return whether each field is of its kind."""
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

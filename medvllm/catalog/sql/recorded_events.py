"""Reads the events of the history, without SQLAlchemy on a SQLite file."""

import json
from collections.abc import Iterator

from medvllm.catalog.events import Event
from medvllm.catalog.sql.reader import Reader
from medvllm.catalog.sql.texts import to_json
from medvllm.errors import CatalogError

_EVENTS = "SELECT seq, at, name, record FROM catalog_history"


def events(reader: Reader, name: str | None, since: str | None) -> Iterator[Event]:
    """Iterate over the events in their order.

    Args:
        reader: Where to read.
        name: Only events of this name.
        since: Only events from this moment on (UTC, ISO 8601).

    Raises:
        CatalogError: An event is not what was written.
    """
    wanted = {"name = :name": name, "at >= :since": since}
    conditions = [condition for condition, value in wanted.items() if value is not None]
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    values = {key: value for key, value in (("name", name), ("since", since)) if value is not None}
    for seq, *others in reader.stream(f"{_EVENTS} {where} ORDER BY seq", values):
        event = event_of(seq, *others)
        if event is None:
            raise CatalogError(
                f"The history is damaged: event {seq} is not what was written.\n"
                "To see what else is wrong: medvllm history verify"
            )
        yield event


def event_of(seq: int, at: str, name: str | None, record: str) -> Event | None:
    """Return the event of a row, or None if the row is not what was written."""
    try:
        event = Event(**json.loads(record))
        is_written = to_json(event.to_dict()) == record and _is_sound(event)
    except (ValueError, TypeError, RecursionError):
        return None
    return event if is_written and (seq, at, name) == (event.seq, event.at, event.name) else None


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

"""The history: rows that are only added, each with a hash over itself and the row before."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, insert, select, update

from medvllm.catalog.events import DEFAULT, Event
from medvllm.catalog.sql.tables import aliases, head, history, names, other_names, versions
from medvllm.errors import CatalogError

FIRST = "0" * 64


def to_json(content: Any) -> str:
    """Return `content` in the one form that is stored and hashed: sorted, and in ASCII, which every database keeps."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """The changes of one transaction. `close` adds their rows, and moves on the catalogue's revision."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        row = connection.execute(select(head)).one()
        self._length, self._hash = row.length, row.hash
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
    ) -> None:
        """Add an event."""
        self._length += 1
        at = datetime.now(UTC).isoformat(timespec="microseconds")
        event = Event(
            self._length, at, _who(), socket.gethostname(), action, name, version, alias, reason, dict(detail or {})
        )
        self.events.append(event)
        record = to_json(event.to_dict())
        self._hash = sha256(self._hash + record)
        self._rows.append({"seq": self._length, "at": at, "name": name, "record": record, "hash": self._hash})

    def close(self) -> None:
        """Write what was noted; without it, nothing changes."""
        if self._rows:
            self.connection.execute(insert(history), self._rows)
            values: dict[str, Any] = {"length": self._length, "hash": self._hash}
            if any(event.action != "loaded" for event in self.events):  # what was looked up stands after a load
                values["revision"] = head.c.revision + 1
            self.connection.execute(update(head).values(values))


def events(connection: Connection, name: str | None, since: str | None) -> Iterator[Event]:
    """Give the events in their order: those of a model, those since a moment (UTC, ISO 8601), or all."""
    query = select(history.c.seq, history.c.record).order_by(history.c.seq)
    if name is not None:
        query = query.where(history.c.name == name)
    if since is not None:
        query = query.where(history.c.at >= since)
    with connection.execute(query.execution_options(yield_per=1000)) as rows:  # closed, read to its end or not
        for number, record in rows:
            event = _event(record)
            if event is None:
                raise CatalogError(
                    f"The history is damaged: event {number} is not what was written.\n"
                    "What else is wrong: medvllm history --check"
                )
            yield event


def flaws(connection: Connection) -> Iterator[str]:
    """Give what is wrong: events edited, removed or reordered, and entries and aliases that they do not account for."""
    end = connection.execute(select(head)).one()
    before, expected, replayed = FIRST, 1, _Replay()
    whole = True
    rows = connection.execute(select(history).order_by(history.c.seq).execution_options(yield_per=1000))
    for row in rows:
        yield from _missing(expected, row.seq - 1)
        event = _event(row.record)
        if event is None or (row.seq, row.at, row.name) != (event.seq, event.at, event.name) or not replayed.add(event):
            yield f"event {row.seq} is not what was written, or not where"
        elif row.seq == expected and row.hash != sha256(before + row.record):
            yield f"event {row.seq} is not what was written after event {row.seq - 1}"
        whole = whole and row.seq == expected
        before, expected = row.hash, row.seq + 1
    yield from _missing(expected, end.length)
    if expected > end.length + 1 or (whole and expected == end.length + 1 and before != end.hash):
        yield f"the history ends with event {expected - 1}, and the catalogue was last changed by another"
    yield from replayed.differences(connection)


def _missing(first: int, last: int) -> Iterator[str]:
    if first <= last:
        yield f"event {first} is missing" if first == last else f"events {first} to {last} are missing"


class _Replay:
    """What the history says that there is."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, int], dict[str, Any]] = {}
        self._aliases: dict[tuple[str, str], tuple[int | None, bool]] = {}
        self._newest: dict[str, int] = {}
        self._others: dict[tuple[str, int], set[str]] = {}

    def add(self, event: Event) -> bool:
        """Take an event in; return whether it is one that could have been written."""
        try:
            self._add(event)
        except (KeyError, TypeError, ValueError):
            return False
        return True

    def _add(self, event: Event) -> None:
        name, number, alias = event.name or "", event.version or 0, event.alias or ""
        if event.action == "registered":
            facts = dict(event.detail["facts"])
            self._versions[name, number] = facts
            self._newest[name] = max(number, self._newest.get(name, 0))
            self._others[name, number] = set(facts.get("aliases", ()))
        elif event.action == "changed":
            facts = {**self._versions.get((name, number), {}), **event.detail["facts"]}
            self._versions[name, number] = {fact: value for fact, value in facts.items() if value is not None}
        elif event.action == "unregistered":
            self._versions.pop((name, number), None)
            self._others.pop((name, number), None)
        elif event.action in ("aliased", "unaliased", "protected", "unprotected"):
            version, protected = self._aliases.get((name, alias), (None, False))
            if event.action.endswith("aliased"):
                version = event.version if event.action == "aliased" else None
            else:
                protected = event.action == "protected"
            self._aliases[name, alias] = version, protected
        elif event.action == "migrated" and event.detail["from"] < "0002":  # which brought the protections
            self._aliases = {key: (version, False) for key, (version, _) in self._aliases.items()}

    def differences(self, connection: Connection) -> Iterator[str]:
        """Give what is otherwise than the events say."""
        expected = {key: sha256(to_json(facts)) for key, facts in self._versions.items()}
        for row in connection.execute(select(versions).execution_options(yield_per=1000)):
            key = row.name, row.number
            said = expected.pop(key, None), self._versions.get(key, {}).get("model_type")
            if said != (row.sha256, row.model_type) or row.sha256 != sha256(row.facts):
                yield f"version {row.number} of {row.name!r} is not what its events say"
        yield from (f"version {number} of {name!r} is missing" for name, number in expected)
        others: dict[tuple[str, int], set[str]] = {}
        for row in connection.execute(select(other_names)):
            others.setdefault((row.name, row.number), set()).add(row.other)
        for key in others.keys() | self._others.keys():
            if others.get(key, set()) != self._others.get(key, set()):
                yield f"the other names of version {key[1]} of {key[0]!r} are not what its events say"
        pointing = {key: state for key, state in self._aliases.items() if state != (None, False)}
        for row in connection.execute(select(aliases)):
            if pointing.pop((row.name, row.alias), None) != (row.number, row.protected):
                yield f"alias {row.alias!r} of {row.name!r} is not what its events say"
        yield from (f"alias {alias!r} of {name!r} is missing" for name, alias in pointing)
        left: dict[str, int] = {}
        for name, number in self._versions:
            left[name] = max(number, left.get(name, 0))
        unnamed = set(self._newest)
        for row in connection.execute(select(names)):
            unnamed.discard(row.name)
            default = self._aliases.get((row.name, DEFAULT), (None, False))[0]
            if (row.newest, row.current) != (self._newest.get(row.name), default or left.get(row.name)):
                yield f"the version that {row.name!r} means is not what its events say"
        yield from (f"the version that {name!r} means is missing" for name in unnamed)


def _event(record: str) -> Event | None:
    try:
        event = Event(**json.loads(record))
        return event if to_json(event.to_dict()) == record else None
    except (ValueError, TypeError, RecursionError):
        return None


@cache
def _who() -> str:
    """Return the user by the operating system's word: a variable of the environment could say anything."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError, AttributeError):  # another system, or an id without a name, as in containers
        import getpass

        return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()

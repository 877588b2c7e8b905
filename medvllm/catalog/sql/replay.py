"""Replays the history, and compares the tables with the result."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Integer, select, type_coerce

from medvllm.catalog.events import Event
from medvllm.catalog.sql.states import version_row
from medvllm.catalog.sql.tables import aliases, names, other_names, versions
from medvllm.catalog.sql.texts import sha256
from medvllm.catalog.state import NameState, apply_event
from medvllm.catalog.state import other_names as other_names_of


class Replay:
    """The state of each name by the word of its events."""

    def __init__(self) -> None:
        self._states: dict[str, NameState] = {}

    def add(self, event: Event) -> bool:
        """Apply the next event, and return whether it can follow those before."""
        name = event.name or ""
        before = self._states.get(name) or NameState()
        try:
            after = apply_event(before, event)
        except (KeyError, TypeError, ValueError):
            return False
        if after is not before:
            self._states[name] = after
        return True

    def differences(self, connection: Connection) -> Iterator[str]:
        """Iterate over what is in the tables and does not follow from the events, or the other way round."""
        yield from self._version_differences(connection)
        yield from self._other_name_differences(connection)
        yield from self._alias_differences(connection)
        yield from self._name_differences(connection)

    def _version_differences(self, connection: Connection) -> Iterator[str]:
        expected = {(name, number) for name, state in self._states.items() for number in state.numbers}
        for row in connection.execute(select(versions).execution_options(yield_per=1000)):
            facts = self._states.get(row.name, NameState()).facts.get(row.number)
            if facts is None or not _is_row(row, version_row(row.name, row.number, facts)):
                yield f"version {row.number} of {row.name!r} is not what its events say"
            expected.discard((row.name, row.number))
        yield from (f"version {number} of {name!r} is missing" for name, number in expected)

    def _other_name_differences(self, connection: Connection) -> Iterator[str]:
        expected = {
            (name, number): set(others)
            for name, state in self._states.items()
            for number, facts in state.facts.items()
            if (others := other_names_of(facts))
        }
        found: dict[tuple[str, int], set[str]] = {}
        for row in connection.execute(select(other_names)):
            found.setdefault((row.name, row.number), set()).add(row.other)
        for name, number in found.keys() | expected.keys():
            if found.get((name, number)) != expected.get((name, number)):
                yield f"the other names of version {number} of {name!r} are not what its events say"

    def _alias_differences(self, connection: Connection) -> Iterator[str]:
        expected = {
            (name, alias.alias): (alias.version, alias.protected)
            for name, state in self._states.items()
            for alias in state.aliases.values()
        }
        # `protected` as the number that is stored: SQLite keeps any number in place of true.
        protected = type_coerce(aliases.c.protected, Integer).label("stored")
        for row in connection.execute(select(aliases.c.name, aliases.c.alias, aliases.c.number, protected)):
            if expected.pop((row.name, row.alias), None) != (row.number, row.stored):
                yield f"alias {row.alias!r} of {row.name!r} is not what its events say"
        yield from (f"alias {alias!r} of {name!r} is missing" for name, alias in expected)

    def _name_differences(self, connection: Connection) -> Iterator[str]:
        expected = {name: (state.newest, state.current) for name, state in self._states.items() if state.newest}
        for row in connection.execute(select(names)):
            if expected.pop(row.name, None) != (row.newest, row.current):
                yield f"the version that {row.name!r} means is not what its events say"
        yield from (f"the version that {name!r} means is missing" for name in expected)


def _is_row(row: Any, expected: dict[str, Any]) -> bool:
    """Return whether a row is the expected one, and its text is what its digest says."""
    return (row.model_type, row.sha256) == (expected["model_type"], expected["sha256"]) and (
        sha256(row.facts) == row.sha256
    )

"""What there is by the word of the history, to compare the catalogue with."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Integer, select, type_coerce

from medvllm.catalog.events import DEFAULT, Event
from medvllm.catalog.sql.history import sha256, to_json
from medvllm.catalog.sql.tables import aliases, names, other_names, versions


class Replay:
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
            self._others[name, number] = set(facts.get("also_known_as", ()))
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
        # As it stands there: SQLite keeps any number in place of true.
        state = aliases.c.name, aliases.c.alias, aliases.c.number, type_coerce(aliases.c.protected, Integer).label("is")
        for row in connection.execute(select(*state)):
            if pointing.pop((row.name, row.alias), None) != (row.number, row[3]):
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

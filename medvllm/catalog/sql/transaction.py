"""One change of the stored catalogue, in one database transaction. Every step adds an event to the history.

It is long because each step checks what it may do, and says what to do instead.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace as with_fields
from typing import Any

from sqlalchemy import select

from medvllm.catalog.events import DEFAULT, Alias, Event
from medvllm.catalog.record import Facts, content, is_same, mutable
from medvllm.catalog.sql.facts import normalize_facts
from medvllm.catalog.sql.history import Journal
from medvllm.catalog.sql.lookups import MAX_NUMBER, list_aliases, list_names, list_owners, number_of
from medvllm.catalog.sql.reader import ConnectionReader
from medvllm.catalog.sql.recorded_events import events
from medvllm.catalog.sql.states import read_facts, read_state, write_changes
from medvllm.catalog.sql.tables import versions
from medvllm.catalog.state import NameState, apply_event
from medvllm.catalog.taken import name_taken
from medvllm.errors import CatalogError, ModelNotFoundError
from medvllm.near_names import did_you_mean, near_names


class Transaction:
    """The catalogue while nobody else may change it.

    Names here have no version or alias. Numbers are those of versions. A step makes an event, `apply_event`
    computes what the event makes of the name's state, and the difference is written.

    Attributes:
        is_kept: Whether to commit the transaction at its end.
        is_plan: Whether the transaction only shows what would change. Then a missing reason is not an error.
        needs_reason: Whether a step lacked a reason.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self._connection = journal, journal.connection
        self._reader = ConnectionReader(journal.connection)
        self.is_kept = True
        self.is_plan = False
        self.needs_reason = False
        # The state of the last name that was asked for: steps come name by name, and reading it takes queries.
        self._name: str | None = None
        self._state = NameState()

    def register(
        self,
        name: str,
        facts: Facts,
        *,
        replace: bool = True,
        above: int = 0,
        number: int | None = None,
        may_be_lower: bool = False,
        reason: str | None = None,
    ) -> int:
        """Add a version and return its number.

        If the newest version has the same content, no version is added: the newest one gets those of the facts that may
        change, and its number is returned. This does not apply if `number` is given.

        Args:
            name: The name.
            facts: The facts of the version.
            replace: Whether the name may have a version already.
            above: The new number is higher than this.
            number: The number, or None for the next one.
            may_be_lower: Whether `number` may be below the newest one: the caller knows that it never meant anything
                else.
            reason: Why; kept in the history.

        Raises:
            ModelExistsError: The name has a version, and `replace` is not set.
            CatalogError: The number was given before, or no number is left.
            RequestError: The facts cannot be stored.
        """
        state = self._state_of(name)
        last = max(state.numbers, default=0)
        if last and not replace:
            raise name_taken(name, "stored", last)
        if number is None and last and is_same(content(facts), content(self.facts(name, last))):
            self.change(name, last, mutable(facts), reason=reason)
            return last

        facts = normalize_facts(name, facts)
        self._check_other_names(name, facts.get("also_known_as", ()))
        version = max(state.newest, above) + 1 if number is None else number
        if version > MAX_NUMBER:
            raise CatalogError(
                f"Model {name!r} cannot have another version: the highest number is {MAX_NUMBER}.", model=name
            )
        if version <= state.newest and not may_be_lower:
            raise CatalogError(
                f"Version {version} of model {name!r} existed before, and no number is used twice. The newest version "
                f"was {state.newest}.\nOmit the number to get the next one.",
                model=name,
            )
        self._record("registered", name, version=version, reason=reason, detail={"facts": facts})
        return version

    def change(self, name: str, number: int, facts: Facts, *, reason: str | None = None) -> None:
        """Change facts of a version that may change. None takes a fact away.

        Raises:
            ModelNotFoundError: There is no such version.
            CatalogError: A protected alias points to the version, its baseline would change, and there is no reason.
        """
        before = self.facts(name, number)
        news = {fact: value or None for fact, value in facts.items() if not is_same(value or None, before.get(fact))}
        if not news:
            return
        protections = [alias for alias in self.aliases(name) if alias.protected and alias.version == number]
        if protections and news.keys() & {"baseline", "baseline_digest"}:
            self._require_reason(protections[0], reason)
        stored = normalize_facts(name, {fact: value for fact, value in {**before, **news}.items() if value is not None})
        detail = {"facts": {fact: stored.get(fact) for fact in news}}
        self._record("changed", name, version=number, reason=reason, detail=detail)

    def unregister(self, name: str, number: int, *, force: bool = False, reason: str | None = None) -> None:
        """Remove a version. Its number is never given again.

        Raises:
            CatalogError: An alias points to the version, and `force` is not set.
        """
        pointing = [alias for alias in self.aliases(name) if alias.version == number]
        if pointing and not force:
            which = ", ".join(alias.alias for alias in pointing)
            raise CatalogError(
                f"Version {number} of model {name!r} cannot be removed, because an alias points to it: {which}.\n"
                f"Move the alias first: medvllm alias set {name} {pointing[0].alias} VERSION\n"
                f"Or remove both: medvllm unregister {name}@{number} --force",
                model=name,
            )
        for alias in pointing:
            self.remove_alias(name, alias.alias, reason=reason)
        self._record("unregistered", name, version=number, reason=reason)

    def set_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        approved: Facts | None = None,
        reason: str | None = None,
    ) -> None:
        """Point an alias to a version. A protected alias only moves to a version whose facts equal `approved`.

        Raises:
            ModelNotFoundError: There is no such version.
            CatalogError: The alias is protected, and the version is not the approved one.
        """
        self.resolve(name, str(number))
        self._check_case(name, alias)
        before = self._alias(name, alias)
        if before.version == number:
            return
        if before.protected and approved != self.facts(name, number):
            raise CatalogError(
                f"Alias {alias!r} of model {name!r} is protected, and version {number} changed while it was checked.\n"
                f"Try again: medvllm alias set {name} {alias} {number} --reason 'why'",
                model=name,
            )
        self._record("aliased", name, version=number, alias=alias, reason=reason, detail={"from": before.version})

    def remove_alias(self, name: str, alias: str, *, reason: str | None = None) -> None:
        """Let an alias point to nothing. A protected alias requires a reason and stays protected.

        Raises:
            ModelNotFoundError: The name has no such alias.
            CatalogError: The alias is protected, and there is no reason, or it is the alias `default`.
        """
        before = self._alias(name, alias)
        if before.version is None:
            known = [other.alias for other in self.aliases(name) if other.version is not None]
            has = f" It has: {', '.join(known)}." if known else ""
            raise ModelNotFoundError(f"Model {name!r} has no alias {alias!r}.{has}", model=name)
        if before.protected:
            self._require_reason(before, reason)
            _check_not_default(before)
        self._record("unaliased", name, alias=alias, reason=reason, detail={"from": before.version})

    def protect(self, name: str, alias: str, protected: bool, *, reason: str | None = None) -> None:
        """Protect an alias, or end its protection, which requires a reason.

        Raises:
            ModelNotFoundError: The name has no version.
            CatalogError: There is no reason, or the alias `default` is to be protected before it is set.
        """
        self.resolve_all(name, None)
        self._check_case(name, alias)
        before = self._alias(name, alias)
        if before.protected == protected:
            return
        if before.protected:
            self._require_reason(before, reason)
        if protected and alias == DEFAULT and before.version is None:
            raise CatalogError(
                f"Alias 'default' of model {name!r} is not set, so the bare name would still mean the newest version.\n"
                f"Set it first: medvllm alias set {name} default {self.resolve(name, None)}",
                model=name,
            )
        self._record("protected" if protected else "unprotected", name, alias=alias, reason=reason)

    def note(
        self,
        action: str,
        name: str,
        version: int | None,
        *,
        reason: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an event that changes nothing in the catalogue: a model was locked, imported or loaded."""
        self._journal.note(action, name, version=version, reason=reason, detail=detail)

    @property
    def events(self) -> list[Event]:
        """The events so far."""
        return self._journal.events

    def resolve(self, name: str, suffix: str | None) -> int:
        """Return the number of the version that a name means, alone or with a number or an alias.

        Raises:
            ModelNotFoundError: There is no such version.
        """
        state = self._state_of(name)
        if suffix is None:
            number = state.current
        elif (stated := number_of(suffix)) is not None:
            number = stated if stated in state.numbers else None
        else:
            number = self._alias(name, suffix).version
        if number is None:
            raise self._not_found(name, suffix)
        return number

    def resolve_all(self, name: str, suffix: str | None) -> list[int]:
        """Return the number of the version that a suffix means, or without a suffix those of all versions.

        Raises:
            ModelNotFoundError: There is no such version.
        """
        if suffix is not None:
            return [self.resolve(name, suffix)]
        numbers = self.numbers(name)
        if not numbers:
            raise self._not_found(name)
        return numbers

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a name's versions, the newest last."""
        return sorted(self._state_of(name).numbers)

    def all_numbers(self) -> dict[str, set[int]]:
        """Return the numbers of every name's versions. One query for all names saves minutes."""
        found: dict[str, set[int]] = {}
        for name, number in self._connection.execute(select(versions.c.name, versions.c.number)):
            found.setdefault(name, set()).add(number)
        return found

    def read_registered_facts(self, name: str) -> dict[int, dict[str, Any]]:
        """Return the facts with which each version of a name was stored, including versions that were removed."""
        rows = (event for event in events(self._reader, name, None) if event.action == "registered")
        return {event.version: event.detail["facts"] for event in rows if event.version}

    def facts(self, name: str, number: int) -> Facts:
        """Return the facts of a version.

        Raises:
            ModelNotFoundError: There is no such version.
            CatalogError: The facts are not what was written.
        """
        state = self._state_of(name)
        if number not in state.facts:
            facts = read_facts(self._connection, name, number)
            if facts is None:
                raise self._not_found(name, str(number))
            self._state = with_fields(state, facts={**state.facts, number: facts})
        return self._state.facts[number]

    def aliases(self, name: str) -> list[Alias]:
        """Return the aliases of a name, sorted."""
        return [alias for _, alias in sorted(self._state_of(name).aliases.items())]

    def _state_of(self, name: str) -> NameState:
        if name != self._name:
            self._name, self._state = name, read_state(self._connection, name)
        return self._state

    def _record(
        self,
        action: str,
        name: str,
        *,
        version: int | None = None,
        alias: str | None = None,
        reason: str | None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an event to the history, and write what it makes of the name."""
        before = self._state_of(name)
        event = self._journal.note(action, name, version=version, alias=alias, reason=reason, detail=detail)
        after = apply_event(before, event)
        write_changes(self._connection, name, before, after)
        self._state = after

    def _check_other_names(self, name: str, others: Iterable[str]) -> None:
        """Raise CatalogError if another name of an entry has a protected alias: the entry would answer in its place.

        The protection of an alias outlasts the versions of its name.
        """
        for other in others:
            protected = [alias.alias for alias in list_aliases(self._reader, other) if alias.protected]
            if protected and other != name:
                raise CatalogError(
                    f"Model {name!r} cannot also be known as {other!r}, because alias {protected[0]!r} of {other!r} is "
                    f"protected.\nEnd that protection first: medvllm alias unprotect {other} {protected[0]} "
                    "--reason 'why'",
                    model=name,
                )

    def _check_case(self, name: str, alias: str) -> None:
        """Raise CatalogError if a name has the alias in another case: one could be protected, and the other not."""
        known = self._state_of(name).aliases
        twin = next((other for other in known if other.casefold() == alias.casefold()), alias)
        if alias not in known and twin != alias:
            raise CatalogError(
                f"Model {name!r} has the alias {twin!r}, which differs from {alias!r} only by case.\nUse: {twin}",
                model=name,
            )

    def _require_reason(self, alias: Alias, reason: str | None) -> None:
        """Raise CatalogError if a change of a protected alias has no reason."""
        if reason:
            return
        self.needs_reason = True
        if not self.is_plan:
            raise CatalogError(
                f"Alias {alias.alias!r} of model {alias.name!r} is protected; changing it requires a reason.\n"
                "Add: --reason 'why'",
                model=alias.name,
            )

    def _alias(self, name: str, alias: str) -> Alias:
        """Return an alias, which points to nothing if it does not exist."""
        return self._state_of(name).aliases.get(alias) or Alias(name, alias, None, False)

    def _not_found(self, name: str, suffix: str | None = None) -> ModelNotFoundError:
        pointing = [alias.alias for alias in self.aliases(name) if alias.version is not None]
        known = [*map(str, self.numbers(name)), *pointing]
        if known:
            return ModelNotFoundError(
                f"Model {name!r} has no version or alias {suffix!r:.80}. It has: {', '.join(known[-20:])}.\n"
                f"Show its versions: medvllm show {name}",
                model=name,
            )
        near = list_owners(self._reader, name) or near_names(name, list_names(self._reader), 3)
        hint = "" if near else " Built-in models are not stored."
        return ModelNotFoundError(
            f"Model {name!r} is not stored.{did_you_mean(near)}{hint}\nList the stored models: medvllm list --mine",
            model=name,
            candidates=tuple(near),
        )


def _check_not_default(alias: Alias) -> None:
    """Raise CatalogError if the protected alias that the bare name follows would point to nothing."""
    if alias.alias == DEFAULT:
        raise CatalogError(
            f"Alias 'default' of model {alias.name!r} is protected. Without it, the bare name would mean the newest "
            f"version.\nEnd the protection first: medvllm alias unprotect {alias.name} default --reason 'why'",
            model=alias.name,
        )

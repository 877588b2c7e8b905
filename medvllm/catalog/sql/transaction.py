"""One change of the stored catalogue, inside its transaction: every step is noted in the history."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import and_, bindparam, delete, func, insert, select, update

from medvllm.catalog.events import DEFAULT, HALVES, Alias, Event
from medvllm.catalog.sql.history import Journal, events, sha256, to_json
from medvllm.catalog.sql.rows import facts_of, list_aliases, list_names, number_of
from medvllm.catalog.sql.tables import MAX_NUMBER, aliases, names, other_names, versions
from medvllm.errors import CatalogError, ModelExistsError, ModelNotFoundError, RequestError
from medvllm.facts import MUTABLE_FIELDS
from medvllm.near_names import did_you_mean, near_names

MAX_FACTS = 1_000_000  # bytes of an entry's facts as JSON

# Made once, as making one takes longer than asking it.
_NUMBERS = select(versions.c.number).where(versions.c.name == bindparam("of")).order_by(versions.c.number)
_VERSION = select(versions).where(versions.c.name == bindparam("of"), versions.c.number == bindparam("number"))
_LAST = select(func.max(versions.c.number)).where(versions.c.name == bindparam("of")).scalar_subquery()
_NEWEST = select(names.c.newest, _LAST).where(names.c.name == bindparam("of"))


class Transaction:
    """The catalogue while nobody else may change it. Names here have no suffix; numbers are those of versions."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self._connection = journal, journal.connection
        self.is_kept = True  # whether the change is made in the end
        self.is_plan = False  # whether it only tells what would change: a reason that is missing is noted, not refused
        self.needs_reason = False

    def register(
        self,
        name: str,
        facts: Mapping[str, Any],
        *,
        replace: bool = True,
        above: int = 0,
        number: int | None = None,
        may_be_lower: bool = False,
        reason: str | None = None,
    ) -> int:
        """Add a version and return its number, which is over `above`, or `number`.

        `may_be_lower`: the number may be below the newest, as the caller knows that it never meant anything else.

        When the newest has the same content, it takes the marks that are stated, and its number is returned.
        ModelExistsError: the name has a version and `replace` is not set.
        """
        newest, last = self._newest(name)
        if last and not replace:
            raise ModelExistsError(
                f"Model {name!r} is stored already (version {last}).\n"
                "Take another name, or say that this one takes its place: register(…, replace=True)",
                model=name,
            )
        if number is None and last and same(content(facts), content(self.facts(name, last))):
            self.change(
                name, last, {fact: value for fact, value in facts.items() if fact in MUTABLE_FIELDS}, reason=reason
            )
            return last
        text = _checked(name, facts)
        self._check_others(name, facts.get("also_known_as", ()))
        version = max(newest, above) + 1 if number is None else number
        if version > MAX_NUMBER:
            raise CatalogError(
                f"Model {name!r} has no number left for a version: {MAX_NUMBER} is the last.", model=name
            )
        if version <= newest and not may_be_lower:
            raise CatalogError(
                f"Version {version} of model {name!r} was given before, and a number is never used again; the newest "
                f"was {newest}.\nLeave the number out, and the next one is given.",
                model=name,
            )
        if newest:
            self._connection.execute(update(names).where(names.c.name == name).values(newest=max(newest, version)))
        else:
            self._connection.execute(insert(names), {"name": name, "newest": version, "current": version})
        row = {"name": name, "number": version, "model_type": facts["model_type"], "facts": text}
        self._connection.execute(insert(versions), {**row, "sha256": sha256(text)})
        if others := sorted(set(facts.get("also_known_as", ()))):
            rows = [{"other": other, "name": name, "number": version} for other in others]
            self._connection.execute(insert(other_names), rows)
        self._journal.note("registered", name, version=version, reason=reason, detail={"facts": dict(facts)})
        if newest:
            self._settle(name)
        return version

    def change(self, name: str, number: int, marks: Mapping[str, Any], *, reason: str | None = None) -> None:
        """Change what may change in a version: its marks. None takes one away."""
        before = self.facts(name, number)
        news = {mark: value for mark, value in marks.items() if not same(value or None, before.get(mark))}
        if not news:
            return
        protections = [alias for alias in self.aliases(name) if alias.protected and alias.version == number]
        if protections and news.keys() & {"baseline", "baseline_digest"}:
            self._ask_reason(protections[0], reason)
        text = _checked(name, {fact: value for fact, value in {**before, **news}.items() if news.get(fact, True)})
        this = and_(versions.c.name == name, versions.c.number == number)
        self._connection.execute(update(versions).where(this).values(facts=text, sha256=sha256(text)))
        detail = {"facts": {mark: value or None for mark, value in news.items()}}
        self._journal.note("changed", name, version=number, reason=reason, detail=detail)

    def unregister(self, name: str, number: int, *, force: bool = False, reason: str | None = None) -> None:
        """Remove a version for good. CatalogError: an alias points to it, and `force` is not set."""
        pointing = [alias for alias in self.aliases(name) if alias.version == number]
        if pointing and not force:
            which = ", ".join(alias.alias for alias in pointing)
            raise CatalogError(
                f"Version {number} of model {name!r} is what an alias points to: {which}.\n"
                f"Move it first: medvllm alias set {name} {pointing[0].alias} VERSION\n"
                f"Or remove the alias with the version: medvllm unregister {name}@{number} --force",
                model=name,
            )
        for alias in pointing:
            self.remove_alias(name, alias.alias, reason=reason)
        this = and_(versions.c.name == name, versions.c.number == number)
        self._connection.execute(delete(versions).where(this))
        self._journal.note("unregistered", name, version=number, reason=reason)
        self._settle(name)

    def set_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        approved: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> None:
        """Point an alias to a version. A protected one moves only to one whose facts are those that were `approved`."""
        self.resolve(name, str(number))
        self._check_twin(name, alias)
        before = self._alias(name, alias)
        if before is not None and before.version == number:
            return
        if before is not None and before.protected and approved != self.facts(name, number):
            raise CatalogError(
                f"Alias {alias!r} of model {name!r} is protected, and this move was not approved as it stands.\n"
                f"Try again: medvllm alias set {name} {alias} {number} --reason 'why'",
                model=name,
            )
        self._put_alias(Alias(name, alias, number, before is not None and before.protected))
        detail = {"from": before.version if before else None}
        self._journal.note("aliased", name, version=number, alias=alias, reason=reason, detail=detail)
        self._settle(name)

    def remove_alias(self, name: str, alias: str, *, reason: str | None = None) -> None:
        """Let an alias point to nothing; a protected one asks for a reason and stays protected."""
        before = self._alias(name, alias)
        if before is None or before.version is None:
            known = [other.alias for other in self.aliases(name) if other.version is not None]
            has = f" It has: {', '.join(known)}." if known else ""
            raise ModelNotFoundError(f"Model {name!r} has no alias {alias!r}.{has}", model=name)
        if before.protected:
            self._ask_reason(before, reason)
            _check_default(before)
        self._put_alias(Alias(name, alias, None, before.protected))
        self._journal.note("unaliased", name, alias=alias, reason=reason, detail={"from": before.version})
        self._settle(name)

    def protect(self, name: str, alias: str, protected: bool, *, reason: str | None = None) -> None:
        """Protect an alias, or no longer, which asks for a reason."""
        self.some_numbers(name)
        self._check_twin(name, alias)
        before = self._alias(name, alias) or Alias(name, alias, None, False)
        if before.protected == protected:
            return
        if before.protected:
            self._ask_reason(before, reason)
        if protected and alias == DEFAULT and before.version is None:
            raise CatalogError(
                f"Alias 'default' of model {name!r} is not set, so the bare name means the newest version, whatever is "
                f"protected.\nSet it first: medvllm alias set {name} default {self.resolve(name, None)}",
                model=name,
            )
        self._put_alias(Alias(name, alias, before.version, protected))
        self._journal.note("protected" if protected else "unprotected", name, alias=alias, reason=reason)

    def note(
        self,
        action: str,
        name: str,
        version: int | None,
        *,
        reason: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Note what was done to a model outside of the catalogue: that it was locked, imported or loaded."""
        self._journal.note(action, name, version=version, reason=reason, detail=detail)

    @property
    def events(self) -> list[Event]:
        """What was changed so far."""
        return self._journal.events

    def resolve(self, name: str, suffix: str | None) -> int:
        """Return the version that a name, a number or an alias means; ModelNotFoundError: there is none."""
        if suffix is None:
            number = self._connection.execute(select(names.c.current).where(names.c.name == name)).scalar()
        elif (stated := number_of(suffix)) is not None:
            number = stated if stated in self.numbers(name) else None
        else:
            number = next((alias.version for alias in self.aliases(name) if alias.alias == suffix), None)
        if number is None:
            raise self._not_found(name, suffix)
        return int(number)

    def some_numbers(self, name: str) -> list[int]:
        """Return the numbers of a name's versions; ModelNotFoundError: there is none."""
        numbers = self.numbers(name)
        if not numbers:
            raise self._not_found(name)
        return numbers

    def numbers(self, name: str) -> list[int]:
        """Return the numbers of a name's versions, the newest last."""
        return list(self._connection.execute(_NUMBERS, {"of": name}).scalars())

    def all_numbers(self) -> dict[str, set[int]]:
        """Return the numbers of every name's versions: one look for all, where a look for each takes minutes."""
        found: dict[str, set[int]] = {}
        for name, number in self._connection.execute(select(versions.c.name, versions.c.number)):
            found.setdefault(name, set()).add(number)
        return found

    def names(self) -> list[str]:
        """Return the names that have a version."""
        return list_names(self._connection)

    def registered(self, name: str) -> dict[int, dict[str, Any]]:
        """Return the facts with which each version of a name was stored, also of those that are gone."""
        rows = (event for event in events(self._connection, name, None) if event.action == "registered")
        return {event.version: event.detail["facts"] for event in rows if event.version}

    def facts(self, name: str, number: int) -> dict[str, Any]:
        """Return a version's facts; ModelNotFoundError: there is no such version."""
        row = self._connection.execute(_VERSION, {"of": name, "number": number}).one_or_none()
        if row is None:
            raise self._not_found(name, str(number))
        return facts_of(row)

    def aliases(self, name: str) -> list[Alias]:
        """Return the aliases of a name."""
        return list_aliases(self._connection, name)

    def _check_others(self, name: str, others: Iterable[str]) -> None:
        """Raise CatalogError when another name of an entry is one whose aliases are protected: it would answer there.

        The protection of an alias outlasts the name's last version.
        """
        for other in others:
            protected = [alias.alias for alias in self.aliases(other) if alias.protected]
            if protected and other != name:
                raise CatalogError(
                    f"Model {name!r} cannot be known as {other!r} too: alias {protected[0]!r} of it is protected.\n"
                    f"Lift that first: medvllm alias protect {other} {protected[0]} --off --reason 'why'",
                    model=name,
                )

    def _check_twin(self, name: str, alias: str) -> None:
        """Raise CatalogError when a name has the alias in another case: one could be protected, and the other not."""
        known = [other.alias for other in self.aliases(name)]
        twin = next((other for other in known if other.casefold() == alias.casefold()), alias)
        if alias not in known and twin != alias:
            raise CatalogError(
                f"Model {name!r} has the alias {twin!r}, which differs from {alias!r} by case alone.\nUse: {twin}",
                model=name,
            )

    def _ask_reason(self, alias: Alias, reason: str | None) -> None:
        """Raise CatalogError when a change of a protected alias has no reason."""
        if reason:
            return
        self.needs_reason = True
        if not self.is_plan:
            raise CatalogError(
                f"Alias {alias.alias!r} of model {alias.name!r} is protected; changing it requires a reason.\n"
                "Give it: --reason 'why'",
                model=alias.name,
            )

    def _newest(self, name: str) -> tuple[int, int]:
        """Return the newest number that was ever given to a name, and that of a version that is left; 0 for none."""
        row = self._connection.execute(_NEWEST, {"of": name}).one_or_none()
        return (0, 0) if row is None else (row[0], row[1] or 0)

    def _alias(self, name: str, alias: str) -> Alias | None:
        return next((known for known in self.aliases(name) if known.alias == alias), None)

    def _put_alias(self, alias: Alias) -> None:
        this = and_(aliases.c.name == alias.name, aliases.c.alias == alias.alias)
        self._connection.execute(delete(aliases).where(this))
        if alias.version is not None or alias.protected:
            values = {"name": alias.name, "alias": alias.alias, "number": alias.version, "protected": alias.protected}
            self._connection.execute(insert(aliases).values(**values))

    def _settle(self, name: str) -> None:
        """Keep the version that the bare name means: the alias `default`, else the newest."""
        default = select(aliases.c.number).where(aliases.c.name == name, aliases.c.alias == DEFAULT).scalar_subquery()
        newest = select(func.max(versions.c.number)).where(versions.c.name == name).scalar_subquery()
        current = func.coalesce(default, newest)
        self._connection.execute(update(names).where(names.c.name == name).values(current=current))

    def _not_found(self, name: str, suffix: str | None = None) -> ModelNotFoundError:
        has = self._has(name)
        if not has:
            query = select(other_names.c.name).where(other_names.c.other == name)
            near = list(self._connection.execute(query.distinct()).scalars()) or near_names(name, self.names(), 3)
            way = "List yours with: medvllm list --mine" + ("" if near else "; built-in models are not stored")
            return ModelNotFoundError(
                f"Model {name!r} is not stored.{did_you_mean(near)}\n{way}", model=name, candidates=tuple(near)
            )
        return ModelNotFoundError(
            f"Model {name!r} has no version or alias {suffix!r:.80}.{has}\nSee what it has: medvllm show {name}",
            model=name,
        )

    def _has(self, name: str) -> str:
        aliases = (alias.alias for alias in self.aliases(name) if alias.version is not None)
        known = [*map(str, self.numbers(name)), *aliases]
        return f" It has: {', '.join(known[-20:])}." if known else ""


def content(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a version: the facts that cannot change in it."""
    return {fact: value for fact, value in facts.items() if fact not in MUTABLE_FIELDS}


def same(fact: Any, stored: Any) -> bool:
    """Return whether a fact is as it is stored: to Python, True is 1 is 1.0."""
    return fact == stored and json.dumps(fact, sort_keys=True, default=repr) == json.dumps(stored, sort_keys=True)


def _checked(name: str, facts: Mapping[str, Any]) -> str:
    try:
        text = to_json(facts)
    except (TypeError, ValueError) as error:
        raise RequestError(f"Model {name!r} cannot be stored: {error}.", model=name) from error
    if "null" in text and _has_none(facts):
        raise RequestError(f"Model {name!r} cannot be stored: a fact of it holds None.\nLeave it out.", model=name)
    if "\\ud" in text and HALVES.search(json.dumps(facts, ensure_ascii=False)):
        raise RequestError(f"Model {name!r} cannot be stored: a fact of it holds half a character.", model=name)
    if len(text) > MAX_FACTS:
        raise RequestError(
            f"The facts of model {name!r} take {len(text):,} bytes; {MAX_FACTS:,} are allowed.", model=name
        )
    return text


def _has_none(value: Any) -> bool:
    """Return whether something inside a fact is None, which JSON can say and an exported file cannot."""
    if isinstance(value, Mapping):
        return any(map(_has_none, value.values()))
    return any(map(_has_none, value)) if isinstance(value, (list, tuple)) else value is None


def _check_default(alias: Alias) -> None:
    """Raise CatalogError when the protected alias of the bare name is to point to nothing."""
    if alias.alias == DEFAULT:
        raise CatalogError(
            f"Alias 'default' of model {alias.name!r} is protected, and without it the bare name would mean the newest "
            f"version.\nLift the protection first: medvllm alias protect {alias.name} default --off --reason 'why'",
            model=alias.name,
        )

"""What the events of a name have made of it, and what the next event makes of that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from medvllm.catalog.events import DEFAULT, Alias, Event
from medvllm.catalog.record import Facts


@dataclass(frozen=True)
class NameState:
    """The versions and aliases of one name at one moment.

    Attributes:
        newest: The highest number ever given to a version, 0 for none. No number is given twice.
        numbers: The numbers of the versions that exist.
        facts: The facts of these versions by number. A transaction reads only those that it needs.
        aliases: The aliases by their own name. One without a version is protected but not set.
    """

    newest: int = 0
    numbers: frozenset[int] = frozenset()
    facts: Mapping[int, Facts] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)

    @property
    def current(self) -> int | None:
        """The version that the bare name means: that of the alias `default`, else the highest, or None."""
        default = self.aliases.get(DEFAULT)
        if default is not None and default.version is not None:
            return default.version
        return max(self.numbers, default=None)


def apply_event(state: NameState, event: Event) -> NameState:
    """Return the state of a name after an event.

    The transaction that writes an event and the check of the history both use this function, so that they always agree.

    Args:
        state: The state before. It must have the facts of the version that a "changed" event is about.
        event: An event of this name. One that does not change the catalogue, such as "loaded", returns `state`.

    Raises:
        ValueError, KeyError, TypeError: The event cannot follow this state, or has no valid content.
    """
    step = _STEPS.get(event.action)
    return state if step is None else step(state, event)


def other_names(facts: Facts) -> frozenset[str]:
    """Return the other names by which a version is known."""
    return frozenset(facts.get("also_known_as", facts.get("aliases", ())))  # the former name, in old events


def _register(state: NameState, event: Event) -> NameState:
    number, facts = _number(event), dict(event.detail["facts"])
    if number in state.numbers:
        raise ValueError(f"version {number} exists")
    added = replace(state, newest=max(number, state.newest), numbers=state.numbers | {number})
    return _with_facts(added, number, facts)


def _change(state: NameState, event: Event) -> NameState:
    number = _number(event)
    facts = {**state.facts[number], **event.detail["facts"]}  # None takes a fact away
    return _with_facts(state, number, {fact: value for fact, value in facts.items() if value is not None})


def _unregister(state: NameState, event: Event) -> NameState:
    number = _number(event)
    if number not in state.numbers:
        raise ValueError(f"version {number} does not exist")
    left = {other: facts for other, facts in state.facts.items() if other != number}
    return replace(state, numbers=state.numbers - {number}, facts=left)


def _point(state: NameState, event: Event) -> NameState:
    before = _alias(state, event)
    return _with_alias(state, replace(before, version=_number(event)))


def _clear(state: NameState, event: Event) -> NameState:
    return _with_alias(state, replace(_alias(state, event), version=None))


def _protect(state: NameState, event: Event) -> NameState:
    return _with_alias(state, replace(_alias(state, event), protected=event.action == "protected"))


_STEPS: Mapping[str, Callable[[NameState, Event], NameState]] = {
    "registered": _register,
    "changed": _change,
    "unregistered": _unregister,
    "aliased": _point,
    "unaliased": _clear,
    "protected": _protect,
    "unprotected": _protect,
}


def _with_facts(state: NameState, number: int, facts: Facts) -> NameState:
    if not isinstance(facts["model_type"], str):
        raise TypeError("the type of the model is not text")
    other_names(facts)  # raises an error unless they are a list of names
    return replace(state, facts={**state.facts, number: facts})


def _with_alias(state: NameState, alias: Alias) -> NameState:
    others = {name: other for name, other in state.aliases.items() if name != alias.alias}
    is_kept = alias.version is not None or alias.protected
    return replace(state, aliases={**others, alias.alias: alias} if is_kept else others)


def _alias(state: NameState, event: Event) -> Alias:
    if event.alias is None or event.name is None:
        raise ValueError("the event names no alias")
    return state.aliases.get(event.alias) or Alias(event.name, event.alias, None, False)


def _number(event: Event) -> int:
    if event.version is None:
        raise ValueError("the event names no version")
    return event.version

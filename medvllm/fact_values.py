"""Checks of a fact's value, and the form in which an entry keeps it."""

from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from medvllm.classes import is_reference
from medvllm.errors import RequestError
from medvllm.facts import Class, Texts, accepted_types, known_facts
from medvllm.near_names import did_you_mean, near_keys
from medvllm.words import normalize_value


def check_fact(model: str, keyword: str, value: Any) -> tuple[str, Any]:
    """Return the group that a fact belongs to, and its value in the form in which an entry keeps it.

    Args:
        model: The entry's name, for messages.
        keyword: The fact.
        value: Its value, as `register` or an entry file gives it.

    Raises:
        RequestError: No fact has this name, or the value has another type.
    """
    if keyword not in known_facts():
        raise unknown_fact(keyword, f"keyword {keyword!r} for model {model!r}", known_facts())
    fact = known_facts()[keyword]
    types, value = accepted_types(fact.hint), normalize_value(model, keyword, value)
    for accepted in types:
        fits, kept = _convert(accepted, value)
        if fits and not (fact.hint is Class and isinstance(value, str) and not is_reference(value)):
            return fact.group, kept
    wanted = "a class or 'module:Class'" if fact.hint is Class else " or ".join(map(_type_in_words, types))
    # A prompt may hold what a clinic writes: no message shows it.
    shown = type(value).__name__ if keyword == "prompts" else repr(value)[:80]
    raise RequestError(f"Keyword {keyword!r} of model {model!r} must be {wanted}, not {shown}.", keyword=keyword)


def wrap_single_texts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with a single text as a list where a list of texts is expected: tags="bert" is tags=["bert"]."""
    plural = {
        keyword
        for keyword, fact in known_facts().items()
        if accepted_types(fact.hint)[0] in (list[str], tuple[str, ...])
    }
    plural -= {"id2label"}  # a model with one class is more likely a mistake
    return {
        keyword: [value] if keyword in plural and isinstance(value, str) else value for keyword, value in facts.items()
    }


def unknown_fact(keyword: str, what: str, known: Iterable[str]) -> RequestError:
    """Return the error for a fact that does not exist; `what` is how the message calls it."""
    near = near_keys(keyword, known)
    return RequestError(
        f"Unknown {what}.{did_you_mean(near)}\nIt takes: {', '.join(sorted(known))}",
        keyword=keyword,
        candidates=tuple(near),
    )


def _convert(accepted: Any, value: Any) -> tuple[bool, Any]:
    """Return whether a value has the type, and the form in which it is kept."""
    origin = get_origin(accepted) or accepted
    if origin is Literal:
        return isinstance(value, str) and value in get_args(accepted), value
    if origin in (tuple, list):
        item = get_args(accepted)[0]
        if get_origin(item) is Literal:
            fits = isinstance(value, (tuple, list)) and bool(value) and all(_convert(item, each)[0] for each in value)
            kept = tuple(value) if fits else ()
            return fits, kept[0] if len(kept) == 1 else kept
        kind = get_origin(item) or str
        fits = isinstance(value, (tuple, list)) and all(type(each) is kind for each in value)
        return fits, origin(value) if fits else None
    if origin in (dict, Mapping):
        texts = get_args(accepted)[1] is str
        fits = isinstance(value, Mapping) and all(
            type(key) is str and (type(each) is str or not texts) for key, each in value.items()
        )
        return fits, (dict if origin is dict else Texts)(value) if fits else None
    if accepted is int:
        return type(value) is int and value > 0, value
    if accepted in (str, bool):
        return type(value) is accepted, value
    return isinstance(value, accepted), value  # a class, or None


def _type_in_words(accepted: Any) -> str:
    """Return how an error message calls a type."""
    if get_origin(accepted) is Literal:
        return " or ".join(map(repr, get_args(accepted)))
    if get_origin(accepted) is tuple and get_origin(get_args(accepted)[0]) is Literal:
        return "a list of these"
    return {
        str: "text",
        int: "a whole number of at least 1",
        bool: "True or False",
        NoneType: "None",
        tuple: "a list of texts",
        list: "a list of dicts" if accepted == list[dict[str, Any]] else "a list of texts",
        dict: "a dict of texts" if accepted == dict[str, str] else "a dict with text keys",
        Mapping: "a dict of texts",
    }[get_origin(accepted) or accepted]

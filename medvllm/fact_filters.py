"""Filters on facts: what `list_models` accepts, and which values they match."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal, get_args, get_origin

from medvllm.errors import RequestError
from medvllm.fact_values import unknown_fact
from medvllm.facts import IDENTIFYING, accepted_types, known_facts
from medvllm.near_names import did_you_mean, near_names
from medvllm.words import normalize_value

_MAX_GLOB = 1000
_WILD = frozenset("*?[")


def check_glob(what: str, glob: object) -> str:
    """Return a glob, such as "bio*", that may be searched for.

    A text without * ? or [ is compared as it is, and may have any length.

    Args:
        what: The filter, for messages.
        glob: Its value.

    Raises:
        RequestError: The value is not a text, or the pattern is too long. Compiling a pattern takes time that grows
            with the square of its length.
    """
    if not isinstance(glob, str):
        raise RequestError(f"Filter {what!r} must be text, such as 'bio*', not {type(glob).__name__}.", option=what)
    if len(glob) > _MAX_GLOB and not _WILD.isdisjoint(glob):
        raise RequestError(
            f"The pattern of filter {what!r} has {len(glob):,} characters. At most {_MAX_GLOB:,} are allowed.",
            option=what,
        )
    return glob


def to_glob(keyword: str, value: object) -> str:
    """Return a filter's value as a glob in lower case.

    Args:
        keyword: The fact to filter by.
        value: One text, number or boolean. None asks for entries that do not know the fact, and gives "".

    Raises:
        RequestError: The fact does not exist or cannot be filtered by, or it can never have this value.
    """
    if keyword not in _filterable():
        raise unknown_fact(keyword, f"fact {keyword!r} to filter by", _filterable())
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise RequestError(
            f"Filter {keyword!r} must be one text, number, True, False or None, not {type(value).__name__}.",
            keyword=keyword,
        )
    text = check_glob(keyword, str(value))
    if _WILD.isdisjoint(text):
        text = _known_word(keyword, text)
    return text.casefold()


def matches_glob(value: object, glob: str) -> bool:
    """Return whether a fact, or one item of it, matches what `to_glob` returned."""
    if not glob:
        return value in (None, "", (), [])
    items = value if isinstance(value, (tuple, list)) else (value,)
    if _WILD.isdisjoint(glob):
        return any(item not in (None, "") and str(item).casefold() == glob for item in items)
    return any(item not in (None, "") and fnmatchcase(str(item).casefold(), glob) for item in items)


@cache
def _filterable() -> tuple[str, ...]:
    """Return what can be filtered by: every fact but the mappings, and what identifies an entry."""
    origins = {
        keyword: (get_origin(fact.hint), *map(get_origin, get_args(fact.hint)))
        for keyword, fact in known_facts().items()
    }
    return (*(keyword for keyword, kinds in origins.items() if not {dict, Mapping}.intersection(kinds)), *IDENTIFYING)


def _known_word(keyword: str, text: str) -> str:
    """Return a filter's word in the form that entries use. Raises RequestError for one that no entry can have."""
    text = str(normalize_value("", keyword, text)) if keyword == "label_scheme" else text
    words = _words(keyword)
    if words and text.casefold() not in map(str.casefold, words):
        near = near_names(text, words)
        raise RequestError(
            f"Fact {keyword!r} cannot be {text[:80]!r}.{did_you_mean(near)}\nUse one of: {', '.join(words)}",
            keyword=keyword,
            candidates=tuple(near),
        )
    return text


@cache
def _words(keyword: str) -> tuple[str, ...]:
    """Return the only words that a fact can have; an empty tuple when it can be any text."""
    if keyword == "origin":
        return ("process", "stored", "package", "built-in")
    for accepted in accepted_types(known_facts()[keyword].hint) if keyword in known_facts() else ():
        choice = get_args(accepted)[0] if get_origin(accepted) is tuple else accepted
        if choice is bool or get_origin(choice) is Literal:
            return ("True", "False") if choice is bool else get_args(choice)
    return ()

"""The filters of a listing as conditions of a query, which leave out rows that cannot fit.

`Selection.filter` decides, because databases fold case and read patterns in ways of their own. So a condition may keep
rows that do not fit, but leaves out none that fits. It looks for the longest text that a row must contain in the facts
as they are stored: JSON in ASCII. Both databases are asked to ignore the case of ASCII letters alone. Another letter
that has cases, such as é, may be any character. Rows with a character that becomes several letters when its case is
folded, such as ß, are kept if these could be part of the text.
"""

import json
import re
from collections.abc import Collection, Iterator
from functools import cache
from itertools import islice
from typing import Any

from medvllm.catalog.selection import Selection
from medvllm.fact_filters import matches_glob
from medvllm.spelling import has_lone_surrogate

_MAX_TEXT = 200  # characters to search for; SQLite refuses very long patterns
_MAX_NAMES = 20_000  # to search for; with more, reading all rows is faster
_MAX_TAGS = 20  # to search for; SQLite refuses very deep conditions
_WILDCARDS = r"[*?]|\[!?\]?[^\]]*\]|\["
# Every character that folds to several, or to one of ASCII, is in one of these blocks.
_BLOCKS = ((0x80, 0x600), (0x1E00, 0x2000), (0x2100, 0x2200), (0xFB00, 0xFB20))


class Conditions:
    """The conditions for one selection: their text, empty if every row may fit, and their values.

    Args:
        selection: The filters.
        always: Names whose rows are kept although they may not fit.
        is_sqlite: Whether the database is SQLite; else it is PostgreSQL.
    """

    def __init__(self, selection: Selection, always: Collection[str], *, is_sqlite: bool) -> None:
        self.values: dict[str, Any] = {}
        self._is_sqlite = is_sqlite
        self._like = "LIKE" if is_sqlite else 'COLLATE "C" ILIKE'  # ignoring case as ASCII has it, in no language
        filters = " AND ".join(f"({each})" for each in self._filters(selection))
        self.text = f"({filters}) OR {self._is_one_of(always)}" if filters and always else filters

    def _filters(self, wanted: Selection) -> Iterator[str]:
        if wanted.names is not None and len(wanted.names) <= _MAX_NAMES:
            yield self._is_one_of(wanted.names)
        if wanted.match is not None:
            yield self._column_has("v.name", _longest_text(wanted.match))
        if wanted.text is not None:
            yield f"{self._column_has('v.name', wanted.text)} OR {self._facts_have(wanted.text)}"
        if wanted.model_type is not None:
            yield f"v.model_type = {self._value(str(wanted.model_type))}"
        if wanted.task is not None:
            task = self._has(_key("task"), _in_json(wanted.task[:_MAX_TEXT]))
            yield f"{task} OR {self._has(_key('pooling'))}" if wanted.task == "embed" else task
        for tag in islice(wanted.tags, _MAX_TAGS):
            yield self._has(*map(_in_json, tag[:_MAX_TEXT].split("=")))  # one tag, or a key with its value behind it
        for keyword, glob in wanted.globs.items():
            yield self._matches(keyword, glob)

    def _matches(self, keyword: str, glob: str) -> str:
        """Return the condition for one fact."""
        if keyword == "origin":
            return "1 = 1" if matches_glob("stored", glob) else "1 = 0"
        if keyword in ("name", "version"):
            column = {"name": "v.name", "version": "CAST(v.number AS TEXT)"}[keyword]
            return self._column_has(column, _longest_text(glob)) if glob else "1 = 0"
        return self._facts_have(_longest_text(glob), _key(keyword)) if glob else self._lacks(keyword)

    def _column_has(self, column: str, text: str) -> str:
        """Return the condition that a column contains a text, in any case."""
        if "\0" in text or has_lone_surrogate(text):
            return "1 = 0"  # no name has such a character, and no query can
        text = text[:_MAX_TEXT]
        pattern = "".join("_" if _has_cases(c) else _escaped(c) for c in text)
        has = f"{column} {self._contains(pattern)}"
        if not (others := _several_letters(text)):
            return has
        n_bytes = f"length(CAST({column} AS BLOB))" if self._is_sqlite else f"octet_length({column})"
        any_other = " OR ".join(f"{column} {self._contains(character)}" for character in others)
        return f"{has} OR ({n_bytes} > length({column}) AND ({any_other}))"  # most names are ASCII

    def _facts_have(self, text: str, key: str = "") -> str:
        """Return the condition that the facts contain a text, in any case; behind a key if one is given."""
        text = text[:_MAX_TEXT]
        has = self._has(key, "".join(map(_in_json_in_any_case, text)))
        if not (others := _several_letters(text)):
            return has
        # The last digit is left out where similar characters stand side by side: they are looked for together.
        starts = sorted({_in_json(c)[: -1 if c >= "\u1000" else None] for c in others})
        any_other = " OR ".join(self._has(start) for start in starts)
        return f"{has} OR ({self._has(_ANY_ESCAPE)} AND ({any_other}))"

    def _has(self, *parts: str) -> str:
        """Return the condition that the facts contain these parts of a pattern, in this order."""
        return f"v.facts {self._contains('%'.join(parts))}"

    def _contains(self, pattern: str) -> str:
        return f"{self._like} {self._value(f'%{pattern}%')} ESCAPE '!'"

    def _lacks(self, keyword: str) -> str:
        """Return the condition that a fact is not known, or empty."""
        value = f"v.facts -> '{keyword}'" if self._is_sqlite else f"CAST(v.facts AS json) -> '{keyword}'"
        condition = f"{value} IS NULL OR CAST({value} AS text) IN ('\"\"', '[]')"
        if self._is_sqlite:
            return condition
        # PostgreSQL refuses to look into JSON with this character, whichever fact has it.
        return f"CASE WHEN {self._has(_in_json(chr(0)))} THEN true ELSE {condition} END"

    def _is_one_of(self, names: Collection[str]) -> str:
        return is_one_of(self._value(json.dumps(sorted(names))), is_sqlite=self._is_sqlite)

    def _value(self, value: str) -> str:
        name = f"value{len(self.values)}"
        self.values[name] = value
        return f":{name}"


def is_one_of(names: str, *, is_sqlite: bool) -> str:
    """Return the condition that a version has one of some names, from the parameter that has them as a list in JSON."""
    if is_sqlite:
        return f"v.name IN (SELECT value FROM json_each({names}))"
    return f"v.name IN (SELECT json_array_elements_text(CAST({names} AS json)))"


def _longest_text(glob: str) -> str:
    """Return the longest text that everything contains which a glob matches."""
    return max(re.split(_WILDCARDS, glob), key=len)


def _key(keyword: str) -> str:
    return _escaped(f'"{keyword}":')


def _in_json(text: str) -> str:
    """Return a text as it is in the facts, for a pattern."""
    return _escaped(json.dumps(text)[1:-1])


def _in_json_in_any_case(character: str) -> str:
    return re.sub(r"(?<=u)[0-9a-f]{4}", "____", _in_json(character)) if _has_cases(character) else _in_json(character)


def _escaped(text: str) -> str:
    return re.sub("[!%_]", r"!\g<0>", text)


def _has_cases(character: str) -> bool:
    """Return whether a character has an upper and a lower case that are not ASCII."""
    return not character.isascii() and not character.lower() == character == character.upper()


def _several_letters(text: str) -> list[str]:
    """Return the characters that may be in place of a part of a text which ignoring their case alone does not find."""
    letters = set(text)
    return [character for character, folded in _foldings().items() if not letters.isdisjoint(folded)]


@cache
def _foldings() -> dict[str, str]:
    """Return the characters that fold to several, or to one of ASCII, and what they fold to."""
    characters = (chr(code) for start, end in _BLOCKS for code in range(start, end))
    folded = {character: character.casefold() for character in characters}
    return {character: fold for character, fold in folded.items() if len(fold) > 1 or fold.isascii()}


_ANY_ESCAPE = _in_json("é")[:2]

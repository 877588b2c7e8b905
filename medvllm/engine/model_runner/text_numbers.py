"""The numbers of texts in messages: a text may have another place in what the caller gave."""

import re

_NUMBERED = re.compile(r"\b(text|pair|prompt|conversation) ([0-9,]+)\b", re.IGNORECASE)


def number_in(message: str) -> int | None:
    """Return the number of the text that a message is about, from 1; None if it names none."""
    found = _NUMBERED.search(message)
    return int(found[2].replace(",", "")) if found else None


def with_number(message: str, number: int) -> str:
    """Return a message with another number for the text that it is about."""
    return _NUMBERED.sub(lambda found: f"{found[1]} {number}", message, count=1)


def with_place(message: str, place: str) -> str:
    """Return a message with a place, such as "line 3 of notes.csv", for the text that it is about."""

    def name(found: re.Match[str]) -> str:
        word = found[1].lower()
        named = place if word == "text" else f"the {word} in {place}"
        return (named[:1].upper() if found[1][0].isupper() else named[:1]) + named[1:]

    return _NUMBERED.sub(name, message, count=1)

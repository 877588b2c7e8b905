"""Texts that look like one and are two: what a name must not hold, so that nobody takes one for another."""

import re
import unicodedata

from medvllm.errors import ModelNameError

# Characters without a shape of their own that no category gathers: fillers, joiners, variation selectors, blanks.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (right-to-left marks), halves, line separators


def invisible(text: str) -> str | None:
    """Return a character of a text that cannot be seen, or None."""
    return next((c for c in text if unicodedata.category(c) in _INVISIBLE), None)


def folded(text: str) -> str:
    """Return a text in the usual form: é is one character, and not an e with an accent that follows it.

    ModelNameError: it is no text.
    """
    if not isinstance(text, str):
        raise ModelNameError(f"A model's name must be text, not {type(text).__name__}.")
    return unicodedata.normalize("NFC", text)


def lookalike(text: str) -> str | None:
    """Return why a name may be taken for another one, as the rest of a sentence, or None."""
    for character in text:
        if _BLANK.match(character) or (unicodedata.category(character) == "Zs" and character != " "):
            return f"holds U+{ord(character):04X}, which is a blank that is not a plain space"
        if unicodedata.normalize("NFKC", character) != unicodedata.normalize("NFC", character):
            return f"holds U+{ord(character):04X}, which looks like {unicodedata.normalize('NFKC', character)!r}"
    if "  " in text:
        return "holds two spaces in a row"
    if text != folded(text):
        return "is not in the usual form of Unicode (NFC)"
    for word in re.findall(r"[^\W\d_]+", text):
        if {"LATIN", "CYRILLIC"} <= {unicodedata.name(c, "").partition(" ")[0] for c in word}:
            return f"has Latin and Cyrillic letters in one word, {word[:40]!r}"
    return None

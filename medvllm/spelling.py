"""Characters that a name must not contain, because two different names would then look the same."""

import re
import unicodedata

from medvllm.errors import ModelNameError

# Patterns are texts, not compiled, so that importing this module is fast. `re` compiles and caches them.
# Blank characters of other Unicode categories: fillers, joiners, variation selectors.
_BLANK = "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
_SURROGATE = "[\ud800-\udfff]"
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (right-to-left marks), lone surrogates, line separators


def find_invisible(text: str) -> str | None:
    """Return the first invisible character of a text, or None."""
    if text.isascii() and text.isprintable():  # most names, and much faster
        return None
    return next((c for c in text if unicodedata.category(c) in _INVISIBLE), None)


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text contains half of a surrogate pair, so that it is not valid Unicode."""
    return not text.isascii() and re.search(_SURROGATE, text) is not None


def normalize_text(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), in which é is one character, not an e and an accent.

    Raises:
        ModelNameError: The value is not a text.
    """
    if not isinstance(text, str):
        raise ModelNameError(f"A model's name must be text, not {type(text).__name__}.")
    return unicodedata.normalize("NFC", text)


def find_lookalike(text: str) -> str | None:
    """Return why a name could be mistaken for another one, as the end of a sentence, or None."""
    if text.isascii():  # most names, and much faster
        return "contains two spaces in a row" if "  " in text else None
    for character in text:
        if re.match(_BLANK, character) or (unicodedata.category(character) == "Zs" and character != " "):
            return f"contains U+{ord(character):04X}, a blank that is not a plain space"
        if unicodedata.normalize("NFKC", character) != unicodedata.normalize("NFC", character):
            return f"contains U+{ord(character):04X}, which looks like {unicodedata.normalize('NFKC', character)!r}"
    if "  " in text:
        return "contains two spaces in a row"
    if text != normalize_text(text):
        return "is not in Unicode's composed form (NFC)"
    for word in re.findall(r"[^\W\d_]+", text):
        if {"LATIN", "CYRILLIC"} <= {unicodedata.name(c, "").partition(" ")[0] for c in word}:
            return f"mixes Latin and Cyrillic letters in one word, {word[:40]!r}"
    return None

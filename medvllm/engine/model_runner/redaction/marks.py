"""Marks of an earlier redaction, which pass unharmed: [**Name 12**] and ___ in MIMIC, and medvllm's own [NAME]."""

from collections.abc import Iterable, Sequence

_MIMIC = r"\[\*\*[^\[\]*]{0,120}\*\*\]|_{3,}"
# Inside of a word, or where signs join it to one, a text such as X is a part of a name, not a mark.
_JOINTS = r"[-‐‑_&'’.@/:]?"
_BEFORE, _BEHIND = rf"(?<![\p{{L}}\p{{M}}\p{{N}}]{_JOINTS})", rf"(?!{_JOINTS}[\p{{L}}\p{{M}}\p{{N}}])"


def find_marks(text: str, written: Iterable[str]) -> list[tuple[int, int]]:
    """Return where marks stand in a text, in order.

    Args:
        text: The text.
        written: The texts that this redaction puts in place of others, such as "[NAME]".
    """
    import regex

    longest_first = sorted({each for each in written if each.strip()}, key=len, reverse=True)
    own = [
        f"{_BEFORE if each[0].isalnum() else ''}{regex.escape(each)}{_BEHIND if each[-1].isalnum() else ''}"
        for each in longest_first
    ]
    return [found.span() for found in regex.finditer("|".join([_MIMIC, *own]), text)]


def without_marks(start: int, end: int, marks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of a piece of text that lie outside of the marks."""
    parts: list[tuple[int, int]] = []
    for first, last in marks:
        if last > start and first < end:
            if first > start:
                parts.append((start, first))
            start = max(start, last)
    return [*parts, (start, end)] if start < end else parts

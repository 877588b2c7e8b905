"""Marks of an earlier redaction, which pass unharmed: [**Name 12**] and ___ in MIMIC, and medvllm's own [NAME]."""

from collections.abc import Iterable, Sequence

_MIMIC = r"\[\*\*[^\[\]*]{0,120}\*\*\]|_{3,}"


def find_marks(text: str, written: Iterable[str]) -> list[tuple[int, int]]:
    """Return where marks stand in a text, in order.

    Args:
        text: The text.
        written: The texts that this redaction puts in place of others, such as "[NAME]".
    """
    import regex

    own = [regex.escape(each) for each in sorted(written, key=len, reverse=True) if each.strip()]
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

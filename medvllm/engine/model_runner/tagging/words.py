"""Cuts a text into words: medvllm's own, so that the words of a label do not depend on the tokenizer."""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

# What a grapheme cluster is. A sign is neither a letter nor a digit; a blank is white space or invisible.
_LETTER, _SIGN, _BLANK, _JOINED = range(4)


class Word(NamedTuple):
    """A word of a text, or a run of signs between words.

    Attributes:
        start: The offset of its first character, in Unicode code points.
        end: The offset after its last character.
        pieces: The positions of the tokenizer's pieces that belong to it; none if the tokenizer dropped it.
        crossed: Whether a piece crosses from the word before into this one.
        number: The position of the word among the words that the caller gave; None for a text.
    """

    start: int
    end: int
    pieces: tuple[int, ...] = ()
    crossed: bool = False
    number: int | None = None


def cut_words(text: str, pieces: Sequence[tuple[int, int]], *, every_edge: bool = False) -> list[Word]:
    """Return the words of a text, each with its pieces.

    Words have the boundaries of Unicode (UAX 29). Such a word is cut further beside a sign if a piece begins or ends
    there, and signs at its ends are words of their own: so "Dr.Smith" is three words if the tokenizer can tell Dr
    from Smith. In scripts without blanks, such as Thai and Chinese, a boundary counts only where a piece begins or
    ends. Grapheme clusters are never cut. Blanks belong to no word.

    A piece belongs to each word with a letter or digit of the piece. A piece without any belongs to the signs that it
    covers.

    Args:
        text: The text.
        pieces: The start and end of each piece in the text.
        every_edge: Whether words are also cut wherever a piece begins or ends.
    """
    edges = {offset for piece in pieces for offset in piece}
    letters = bytearray(len(text))  # 1 for each character of a cluster with a letter or digit
    words = list(_cut(text, edges, letters, every_edge))
    return _assign(words, pieces, letters)


def trim_words(text: str, words: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return words that somebody else cut, without blanks at their ends, and with whole grapheme clusters.

    A word that cuts a cluster gets the rest of it; the next word begins behind it.
    """
    boundaries = [0, *(match.end() for match in _pattern(r"\X").finditer(text))]
    trimmed = []
    for start, end in words:
        start, end = (boundaries[bisect_left(boundaries, offset)] for offset in (start, end))
        word = text[start:end]
        trimmed.append((start + len(word) - len(word.lstrip()), end - len(word) + len(word.rstrip())))
    return trimmed


def _cut(text: str, edges: Collection[int], letters: bytearray, every_edge: bool) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each word, and note in `letters` where letters and digits are."""
    boundaries = {match.start() for match in _pattern(r"(?w)\b").finditer(text)}
    without_blanks = {match.start() for match in _pattern(_WITHOUT_BLANKS).finditer(text)}
    run: list[tuple[int, int, int]] = []  # clusters: start, end, kind
    for match in _pattern(r"\X").finditer(text):
        start, end = match.span()
        is_edge, is_boundary = start in edges, start in boundaries
        kind = _kind_of(match[0], is_boundary)
        if kind == _LETTER:
            letters[start:end] = b"\1" * (end - start)
        if run and start in without_blanks and run[-1][0] in without_blanks:
            is_boundary = is_edge
        if run and _is_cut(run[-1][2], kind, is_boundary, is_edge, every_edge):
            yield from _trim(run)
            run = []
        run.append((start, end, kind))
    yield from _trim(run)


def _is_cut(before: int, behind: int, is_boundary: bool, is_edge: bool, every_edge: bool) -> bool:
    """Return whether a word ends between two neighbouring clusters."""
    kinds = {before, behind}
    if _BLANK in kinds:
        return True
    if kinds == {_SIGN}:
        return is_edge
    return is_boundary or (is_edge and _JOINED not in kinds and (every_edge or kinds != {_LETTER}))


def _trim(run: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the word of a run of clusters, and the signs before and behind it."""
    inside = [i for i, (_, _, kind) in enumerate(run) if kind == _LETTER]
    parts = (run[: inside[0]], run[inside[0] : inside[-1] + 1], run[inside[-1] + 1 :]) if inside else (run,)
    for part in parts:
        if any(kind in (_LETTER, _SIGN) for _, _, kind in part):
            yield part[0][0], part[-1][1]


@lru_cache(4096)
def _kind_of(cluster: str, begins_word: bool) -> int:
    """Return what a grapheme cluster is. `begins_word`: it is at a boundary between words."""
    if any(character.isalnum() for character in cluster) and not cluster[0].isspace():
        return _LETTER
    if cluster[0].isspace():
        return _BLANK
    if _pattern(r"[\p{Cc}\p{Cf}]").match(cluster):  # control characters and marks such as the soft hyphen
        return _BLANK if begins_word else _JOINED
    return _SIGN


def _assign(words: Sequence[tuple[int, int]], pieces: Sequence[tuple[int, int]], letters: bytearray) -> list[Word]:
    """Return the words with their pieces."""
    ends = [end for _, end in words]
    found: list[list[int]] = [[] for _ in words]
    crossed = set()
    for number, (start, end) in enumerate(pieces):
        has_letters = letters.find(1, start, end) != -1
        last = None
        for i in range(bisect_right(ends, start), len(words)):
            first_letter, last_letter = words[i]
            if first_letter >= end:
                break
            low, high = max(start, first_letter), min(end, last_letter)
            if low >= high:
                continue
            if letters.find(1, low, high) != -1 if has_letters else letters.find(1, first_letter, last_letter) == -1:
                found[i].append(number)
                if has_letters and last is not None:
                    crossed.add(i)
                last = i
    return [Word(*words[i], tuple(found[i]), i in crossed) for i in range(len(words))]


# Scripts that are written without blanks between words; UAX 29 has a boundary at each of their characters.
_WITHOUT_BLANKS = r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Line_Break=Complex_Context}]"


@cache
def _pattern(pattern: str) -> Any:
    import regex

    return regex.compile(pattern)

"""Where a redaction begins and ends: whole words, whole characters as people see them, no white space."""

from bisect import bisect_left, bisect_right

# A character as people see it, with a letter or digit. In scripts without blanks, such as Thai, it is a word by itself.
_INVISIBLE = r"\p{Cf}{0,8}"  # such as a soft hyphen, which does not end a word
_WITHOUT_BLANKS = r"[\p{Script=Han}\p{Script=Hiragana}\p{Line_Break=Complex_Context}]"
_LETTER = rf"(?:(?={_INVISIBLE}[\p{{L}}\p{{N}}])(?!{_INVISIBLE}{_WITHOUT_BLANKS})\X)"
_RUN = rf"{_LETTER}(?:{_INVISIBLE}{_LETTER})*"
_END = r"(?![\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}])"  # no accent or the like belongs to the last character
_NUMBER = rf"\p{{Nd}}+(?:[-./:]\p{{Nd}}+)+(?!{_LETTER}){_END}"
_ADDRESS = r"(?:https?://|www\.)[^\s,;)>]*\w|(?<![\w.+-])[\w.+-]++@[\w.-]*\w"
# A word is redacted as a whole. Hyphens and apostrophes join, because the rest of a name would give it away. Only the
# 's of a possessive stays.
_JOINED = rf"[-‐‑_&]{_RUN}|['’](?![sS](?!{_LETTER})){_RUN}"
_WORD = rf"(?:{_ADDRESS}){_END}|{_NUMBER}|{_RUN}(?:{_JOINED})*|\X"
# Two redactions of one label are one, if no more than this lies between them.
_BLANKS = r"[^\S\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+"
_GAP = rf"{_BLANKS}|[-‐‑–'’._@&]|(?<=\p{{Nd}})[-–./:+ ()]{{1,2}}(?=\p{{Nd}})"


class Extents:
    """The words of one text, around places in it."""

    def __init__(self, text: str) -> None:
        import regex

        self._text = text
        self._words = [found.span() for found in regex.finditer(_WORD, text) if not found[0][0].isspace()]
        self._starts = [start for start, _ in self._words]
        self._ends = [end for _, end in self._words]
        self._gap = regex.compile(_GAP)

    def words(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the words that a part of the text touches."""
        return self._words[bisect_right(self._ends, start) : bisect_left(self._starts, end)]

    def is_gap(self, start: int, end: int) -> bool:
        """Return whether what lies between two redactions of one label belongs to them."""
        return start >= end or self._gap.fullmatch(self._text, start, end) is not None


def has_letter_or_digit(text: str) -> bool:
    """Return whether a text has a character that could tell something."""
    return any(character.isalnum() for character in text)

"""Words: where Unicode and the tokenizer's pieces say, for pieces of any shape."""

from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from medvllm.engine.model_runner.tagging.words import cut_words, trim_words
from medvllm.engine.model_runner.word_list import WordList, join_words

# A text as its pieces, with | between them; the words that come out, each with the numbers of its pieces.
CASES = [
    ("Dr|.|Smith", "Dr:0 .:1 Smith:2"),
    ("Dr|.Smith", "Dr:0 .: Smith:1"),
    ("Dr.Smith", "Dr.Smith:0"),
    ("name|:|Smith", "name:0 ::1 Smith:2"),
    (" (|Sm|ith|)", "(:0 Smith:1,2 ):3"),
    (" (|Smith),", "(:0 Smith:1 ),:"),
    ("3|.|5", "3:0 .:1 5:2"),
    ("3.5", "3.5:0"),
    ("O'|Brien", "O:0 ': Brien:1"),
    ("O'Brien", "O'Brien:0"),
    ("asthma|,diabetes|;COPD|/Smith", "asthma:0 ,: diabetes:1 ;: COPD:2 /: Smith:3"),
    ("John Smith", "John:0 Smith:0"),
    ("Jo|hn Sm|ith", "John:0,1 Smith:1,2"),
    ("_|Smith|_", "_:0 Smith:1 _:2"),
    ("___", "___:0"),
    ("北京|患|者", "北京:0 患:1 者:2"),
    ("ผู้ป่|วย", "ผู้ป่:0 วย:1"),
    ("カタ|カナ", "カタ:0 カナ:1"),
    ("Jose|\u0301", "Jose\u0301:0,1"),
    ("😀|😀😀", "😀:0 😀😀:1"),
    ("👨\u200d|👩|\u200d👧", "👨\u200d👩\u200d👧:0,1,2"),
    ("\ufeff|Mary\u200e| x", "Mary:1 x:2"),
    ("as|\u00ad|pirin", "as\u00adpirin:0,2"),
    ("\r\n|Mary|\u00a0|\u0085", "Mary:1"),
    ("1\u202f|000", "1:0 000:1"),
]


def _shown(text: str, pieces: list[tuple[int, int]]) -> str:
    return " ".join(f"{text[w.start : w.end]}:{','.join(map(str, w.pieces))}" for w in cut_words(text, pieces))


@pytest.mark.parametrize(("parts", "expected"), CASES, ids=[case[0] for case in CASES])
def test_words_of_pieces(parts: str, expected: str) -> None:
    """A word is cut beside a sign where a piece says so; a piece belongs to each word with a letter of it."""
    pieces, start = [], 0
    for part in parts.split("|"):
        pieces.append((start, start + len(part)))
        start += len(part)
    assert _shown(parts.replace("|", ""), pieces) == expected


def test_pieces_of_one_character_belong_to_its_word() -> None:
    """The bytes of an emoji, and the letters that a normalizer makes of one."""
    assert _shown("ﷺ 😀", [(0, 1), (0, 1), (0, 1), (2, 3), (2, 3)]) == "ﷺ:0,1,2 😀:3,4"


SIGNS = [*"aZ5é北ไひ😀.,(/-_'", "\u0301", "\u200d", "\ufe0f", "\u00ad", "\u0600", "\x00"]
ATOMS = st.sampled_from(
    [*SIGNS, *(" ", "\t", "\r\n", "\f", "\u00a0", "\u2028", "\u200b", "\ufeff"), *("ﷺ", "क्ष", "🇩🇪", "שלום", "한국")]
)


@given(st.lists(ATOMS, max_size=20), st.data(), st.booleans())
def test_words_hold_for_any_text(atoms: list[str], data: st.DataObject, every_edge: bool) -> None:
    """In order, apart, without blanks at their ends, clusters whole; each letter is in a word that has its pieces."""
    text = "".join(atoms)
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=12))})
    pieces = list(pairwise(cuts))
    words = cut_words(text, pieces, every_edge=every_edge)
    clusters = {0} | {match.end() for match in regex.finditer(r"\X", text)}
    assert all(a.end <= b.start for a, b in pairwise(words))
    for word in words:
        assert word.start < word.end and {word.start, word.end} <= clusters
        assert not text[word.start].isspace() and not text[word.end - 1].isspace()
    for number, (start, end) in enumerate(pieces):
        for place in range(start, end):
            if text[place].isalnum():
                assert any(word.start <= place < word.end and number in word.pieces for word in words)


@given(st.lists(ATOMS, max_size=12), st.data())
def test_words_of_others_are_trimmed_to_whole_clusters(atoms: list[str], data: st.DataObject) -> None:
    """Without blanks, apart."""
    text = "".join(atoms)
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=6))})
    clusters = {0} | {match.end() for match in regex.finditer(r"\X", text)}
    trimmed = [(start, end) for start, end in trim_words(text, list(pairwise(cuts))) if start < end]
    assert all(a[1] <= b[0] for a, b in pairwise(trimmed))
    assert all(not text[start:end][0].isspace() and not text[start:end][-1].isspace() for start, end in trimmed)
    assert all(end in clusters or text[end].isspace() for _, end in trimmed)


def test_what_words_cover_is_read() -> None:
    """Blanks between words count as read; what no word covers does not."""
    assert join_words(["No", "", "fever"]).find_read(9) == ((0, 9),)
    listed = WordList("ab, cd ef! ", ((0, 2), (4, 6), (7, 9)))
    assert listed.find_read(11) == ((0, 2), (4, 9)) and listed.find_read(5) == ((0, 2), (4, 5))
    assert WordList("  ", ()).find_read(2) == ((0, 2),) and WordList("", ()).find_read(0) == ()

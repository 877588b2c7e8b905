"""Finds the offsets of a tokenizer's pieces that does not give any, where they can be told for certain."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from medvllm.engine.model_runner.word_list import WordList
from medvllm.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Cuts of a text into parts, the finest first: characters, words and signs, and what stands between blanks.
_CUTS = (r"\X", r"[\p{L}\p{M}\p{N}]+|\s+|.", r"\S+|\s+")
_MARKS = "▁", "##", "Ġ", "@@", "</w>"  # what tokenizers add to the text of a piece


class AlignedPiece(NamedTuple):
    """A piece of a text: the number of its word, and its start and end in the text."""

    word: int
    place: tuple[int, int]


def align_pieces(
    tokenizer: "PreTrainedTokenizerBase",
    text: str | WordList,
    read: str | list[str],
    ids: Sequence[int],
    allow_special_tokens: bool,
) -> list[AlignedPiece] | None:
    """Return the place of each piece of a text, or None if no cut of the text gives the pieces of the whole.

    The text is cut into parts that are tokenized one by one. If this gives the pieces of the whole text, each piece
    belongs to its part.

    Args:
        tokenizer: A tokenizer without offsets.
        text: The text, or the list of words.
        read: What the tokenizer read of it.
        ids: The token ids of the whole, without special tokens.
        allow_special_tokens: Whether special tokens in the text are taken as such.
    """
    for places in _cuts(text, len(ids)):
        forms = read if isinstance(read, list) else [read[start:end] for start, end in places]
        parts = [_tokenize_part(tokenizer, form, isinstance(read, list), allow_special_tokens) for form in forms]
        if [token for part in parts for token in part] != list(ids):
            continue
        found = [
            _align_part(tokenizer, number, form, part, place, is_word=isinstance(text, WordList))
            for number, (form, part, place) in enumerate(zip(forms, parts, places, strict=True))
        ]
        if None not in found:
            return [piece for part in found for piece in part or ()]
    return None


def no_offsets_error(tokenizer: "PreTrainedTokenizerBase", position: int) -> RequestError:
    """Return the error for a text in which the tokenizer's pieces cannot be found."""
    return RequestError(
        f"Tokenizer {type(tokenizer).__name__} does not give the offsets of its tokens, and they cannot be found in "
        f"text {position + 1}.\nGive the text as a list of words, such as: runner.entities([['No', 'fever', '.']])",
        position=position,
    )


def _cuts(text: str | WordList, pieces: int) -> Iterator[Sequence[tuple[int, int]]]:
    """Yield the cuts to try."""
    import regex

    if isinstance(text, WordList):
        yield text.offsets or ((0, 0),)
        return
    for pattern in _CUTS:
        if pattern != _CUTS[0] or pieces >= len(text.strip()):  # most tokenizers have fewer pieces than characters
            yield [match.span() for match in regex.finditer(pattern, text, regex.DOTALL)]


def _tokenize_part(
    tokenizer: "PreTrainedTokenizerBase", form: str, is_word: bool, allow_special_tokens: bool
) -> list[int]:
    if not form:
        return []
    return list(
        tokenizer(
            [form] if is_word else form,
            is_split_into_words=is_word,
            add_special_tokens=False,
            split_special_tokens=not allow_special_tokens,
            verbose=False,
        )["input_ids"]
    )


def _align_part(
    tokenizer: "PreTrainedTokenizerBase",
    number: int,
    form: str,
    part: Sequence[int],
    place: tuple[int, int],
    *,
    is_word: bool,
) -> list[AlignedPiece] | None:
    """Return the pieces of a part; None if it has several words, and which piece is in which is not known."""
    texts = [str(token) for token in tokenizer.convert_ids_to_tokens(list(part))]
    for mark in _MARKS:
        texts = [text.removeprefix(mark).removesuffix(mark) for text in texts]
    spelled = form.strip()
    if "".join(texts).casefold() != spelled.casefold() or sum(map(len, texts)) != len(spelled):
        is_known = is_word or spelled.isalnum() or len(part) < 2
        return [AlignedPiece(number, place)] * len(part) if is_known else None
    start = place[0] if is_word else place[0] + len(form) - len(form.lstrip())
    found = []
    for text in texts:
        found.append(AlignedPiece(number, (start, start + len(text))))
        start += len(text)
    return found

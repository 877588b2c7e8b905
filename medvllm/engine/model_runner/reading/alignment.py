"""Finds the offsets of a tokenizer's pieces that does not give any, where they can be told for certain."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from medvllm.engine.model_runner.reading.word_list import WordList
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
    position: int,
    allow_special_tokens: bool,
) -> list[AlignedPiece]:
    """Return the place of each piece of a text.

    The text is cut into parts that are tokenized one by one. If this gives the pieces of the whole text, each piece
    belongs to its part.

    Args:
        tokenizer: A tokenizer without offsets.
        text: The text, or the list of words.
        read: What the tokenizer read of it.
        ids: The token ids of the whole, without special tokens.
        position: The position of the text in the request, for the message.
        allow_special_tokens: Whether special tokens in the text are taken as such.

    Raises:
        RequestError: No cut gives the pieces of the whole text.
    """
    for places in _cuts(text, len(ids)):
        forms = read if isinstance(read, list) else [read[start:end] for start, end in places]
        parts = [_tokenize_part(tokenizer, form, isinstance(read, list), allow_special_tokens) for form in forms]
        if [token for part in parts for token in part] != list(ids):
            continue
        found: list[AlignedPiece] | None = []
        for number, (form, part, (start, end)) in enumerate(zip(forms, parts, places, strict=True)):
            inside = _align_inside(tokenizer, form.strip(), part)
            if inside is None and isinstance(text, str) and not form.isalnum() and len(part) > 1:
                found = None  # which of its pieces is which of its words is not known
                break
            begin = start + len(form) - len(form.lstrip()) if isinstance(text, str) else start
            for i in range(len(part)):
                place = (begin + inside[i][0], begin + inside[i][1]) if inside else (start, end)
                found.append(AlignedPiece(number, place))
        if found is not None:
            return found
    raise RequestError(
        f"Tokenizer {type(tokenizer).__name__} does not give the offsets of its tokens, and they cannot be found in text "
        f"{position + 1}.\nGive the text as a list of words, such as: runner.entities([['No', 'fever', '.']])",
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


def _align_inside(
    tokenizer: "PreTrainedTokenizerBase", form: str, part: Sequence[int]
) -> list[tuple[int, int]] | None:
    """Return the start and end of each piece in a part, or None if the pieces do not spell it."""
    texts = [str(token) for token in tokenizer.convert_ids_to_tokens(list(part))]
    for mark in _MARKS:
        texts = [text.removeprefix(mark).removesuffix(mark) for text in texts]
    if "".join(texts).casefold() != form.casefold() or sum(map(len, texts)) != len(form):
        return None
    places, start = [], 0
    for text in texts:
        places.append((start, start + len(text)))
        start += len(text)
    return places

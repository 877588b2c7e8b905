"""Splits long texts into windows that the model can read, and reports what they cover."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.foreign_errors import translate_tokenizer_errors
from medvllm.engine.model_runner.inputs import Text
from medvllm.engine.model_runner.reading.alignment import AlignedPiece, align_pieces, no_offsets_error
from medvllm.engine.model_runner.reading.python_tokenizer import Encoded, PythonTokenizer
from medvllm.engine.model_runner.word_list import WordList, find_front
from medvllm.errors import InputTooLongError, LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LongInput = Literal["window", "error", "truncate"]
LONG_INPUTS: tuple[str, ...] = get_args(LongInput)
STRIDE = 64  # tokens that neighbouring windows share, so that each token has context on both sides


@dataclass(frozen=True)
class Window:
    """One window of a text, as token ids with special tokens.

    Attributes:
        text: The position of the text in the request.
        input_ids: The token ids.
        counted: For each token, 1 if this window counts it and 0 if another window does.
        types: For each token, the number of its text in a pair; empty if the tokenizer does not tell.
        words: For each token, the number of its word in the text, or None for special tokens; of a `WordList`, that of
            the list. Empty if not requested.
        offsets: For each token, its start and end in the text, in Unicode code points; empty if not requested.
        wanted: The positions of the tokens whose numbers the caller needs, in order; None for all.
    """

    text: int
    input_ids: list[int]
    counted: list[int]
    types: Sequence[int] = ()
    words: Sequence[int | None] = ()
    offsets: Sequence[tuple[int, int]] = ()
    wanted: Sequence[int] | None = None

    @property
    def places(self) -> Sequence[int]:
        """The positions of the wanted tokens."""
        return range(len(self.input_ids)) if self.wanted is None else self.wanted


def split_into_windows(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[Text | WordList],
    policy: str | None,
    *,
    offsets: bool = False,
    allow_special_tokens: bool = False,
) -> tuple[list[Window], list[Coverage]]:
    """Return the windows of all texts, in order, and the coverage of each text.

    A text without any token has one empty window. Tokens that two windows share count in the window where they are
    further from the edge. Of a pair, only the second text is split; the first is in every window.

    Args:
        tokenizer: The tokenizer; its `model_max_length` is the length of a window, special tokens included.
        texts: The texts, pairs or lists of words.
        policy: What becomes of a long text: "window" (also None), "error" or "truncate".
        offsets: Whether the windows need `words` and `offsets`.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.

    Raises:
        InputTooLongError: A text is longer than a window, and the policy or the tokenizer forbids splitting it.
        RequestError: `offsets` is set, and the tokenizer gives no offsets, and they cannot be found.
    """
    limit = tokenizer.model_max_length
    front = find_front(tokenizer) if any(isinstance(text, WordList) for text in texts) else ""
    windows: list[Window] = []
    coverage: list[Coverage] = []
    for position, text in enumerate(texts):
        with translate_tokenizer_errors(position):
            pieces, step = _tokenize(tokenizer, text, position, offsets, allow_special_tokens, front, policy)
        if len(pieces) > 1 and policy == "error":
            raise too_long_error(position, limit)
        kept = pieces[:1] if policy == "truncate" else pieces
        tokens = 0
        for i, piece in enumerate(kept):
            # Of the shared tokens, each window counts the half that is further from its edge.
            first, last = step // 2 if i else 0, len(piece.cut) - (step - step // 2 if i < len(kept) - 1 else 0)
            # Tokens outside of the split text are in every window and count in the first.
            counted = {*piece.cut[first:last], *(() if i else set(range(len(piece.input_ids))) - set(piece.cut))}
            marks = [int(k in counted) for k in range(len(piece.input_ids))]
            tokens += sum(mark and not special for mark, special in zip(marks, piece.special, strict=True))
            windows.append(Window(position, piece.input_ids, marks, piece.types, piece.words, piece.offsets))
        unknown = _count_unknown(windows[-len(kept) :], tokenizer.unk_token_id)
        end = _split_length(text) if len(kept) == len(pieces) else kept[-1].end
        read = text.find_read(end) if isinstance(text, WordList) else ((0, end),) if end else ()
        coverage.append(Coverage(read, tokens, unknown, len(kept), len(kept) < len(pieces)))
    return windows, coverage


def _split_length(text: Text | WordList) -> int:
    """Return the length of the text that is split into windows: of a pair, that of the second text."""
    if isinstance(text, WordList):
        return len(text.text)
    return len(text if isinstance(text, str) else text[1])


def _count_unknown(windows: Sequence[Window], unknown_id: object) -> int:
    """Return how many counted tokens are the unknown token."""
    return sum(
        token == unknown_id
        for window in windows
        for token, counts in zip(window.input_ids, window.counted, strict=True)
        if counts
    )


@dataclass(frozen=True)
class _Piece:
    """One window as the tokenizer returns it.

    `cut` has the positions of the tokens of the text that is split, and `end` is the offset after the last of them.
    """

    input_ids: list[int]
    special: list[int]
    cut: list[int]
    end: int
    types: Sequence[int]
    words: Sequence[int | None] = ()
    offsets: Sequence[tuple[int, int]] = ()


def _tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    text: Text | WordList,
    position: int,
    offsets: bool,
    allow_special_tokens: bool,
    front: str,
    policy: str | None,
) -> tuple[list[_Piece], int]:
    """Return the windows that a text needs, and how many tokens neighbouring windows share.

    Args:
        tokenizer: The tokenizer.
        text: The text, pair or list of words.
        position: The position of the text in the request.
        offsets: Whether the pieces need words and offsets.
        allow_special_tokens: Whether special tokens in the text are taken as such.
        front: What must stand before each word of a list.
        policy: What becomes of a long text.
    """
    first: str | list[str]
    if isinstance(text, WordList):
        first, second = [front + word if word else "" for word in text.words] or [""], None
    else:
        first, second = (text, None) if isinstance(text, str) else text
    if not tokenizer.is_fast:
        return _tokenize_in_python(tokenizer, first, second, position, offsets, allow_special_tokens, text, policy)
    limit = tokenizer.model_max_length
    step = _find_step(tokenizer, first, second, position, allow_special_tokens)
    encode: Any = tokenizer  # whose types know no list of lists of words
    encoding = encode(
        [first],  # as a list: otherwise, transformers leaves out an empty second text
        None if second is None else [second],
        truncation=True if second is None else "only_second",
        max_length=limit,
        stride=step,
        is_split_into_words=isinstance(first, list),
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        split_special_tokens=not allow_special_tokens,
    )
    pieces = []
    for i, (ids, special) in enumerate(zip(encoding["input_ids"], encoding["special_tokens_mask"], strict=True)):
        belongs = encoding.sequence_ids(i)
        cut = [k for k, is_special in enumerate(special) if not is_special and (second is None or belongs[k] == 1)]
        types = encoding["token_type_ids"][i] if "token_type_ids" in encoding else ()
        words: list[int | None] = []
        places: list[tuple[int, int]] = []
        if offsets or len(encoding["input_ids"]) > 1:  # a single window ends where its text ends
            words, places = encoding.word_ids(i), encoding[i].offsets
        if isinstance(text, WordList):
            places = [_place_in_text(text, word, place, len(front)) for word, place in zip(words, places, strict=True)]
        end = places[cut[-1]][1] if places and cut else 0
        if not offsets:
            words, places = [], []
        pieces.append(_Piece(ids, special, cut, end, types, words, places))
    return pieces, step


def _place_in_text(text: WordList, word: int | None, place: tuple[int, int], front: int) -> tuple[int, int]:
    """Return the place of a piece in the text, for its place in a word behind `front` characters."""
    if word is None or not text.offsets:
        return 0, 0
    start = text.offsets[word][0]
    return start + max(place[0] - front, 0), start + max(place[1] - front, 0)


def _tokenize_in_python(
    tokenizer: "PreTrainedTokenizerBase",
    first: str | list[str],
    second: str | None,
    position: int,
    offsets: bool,
    allow_special_tokens: bool,
    text: Text | WordList,
    policy: str | None,
) -> tuple[list[_Piece], int]:
    """Return the windows of a text as `_tokenize` does, for a tokenizer that is written in Python."""
    reader = PythonTokenizer(tokenizer, allow_special_tokens=allow_special_tokens)
    whole = reader.encode(first, second)
    limit = tokenizer.model_max_length
    parts, step = [whole], 0
    if len(whole.ids) > limit:
        if policy == "error":
            raise too_long_error(position, limit)
        step = _find_step(tokenizer, first, second, position, allow_special_tokens)
        divided = reader.divide(whole, first, second, step)
        if divided is None:
            raise InputTooLongError(
                f"Text {position + 1} has {len(whole.ids):,} tokens, the model takes {limit:,}, and its "
                f"{type(tokenizer).__name__} cannot split a text into windows.\nShorten the text.",
                limit=limit,
                position=position,
            )
        parts = divided
    found: list[AlignedPiece] | None = None
    if (offsets and isinstance(text, str | WordList)) or (policy == "truncate" and len(parts) > 1):
        split, read = (text, first) if isinstance(text, str | WordList) else (text[1], text[1])
        ids = [whole.ids[k] for k in whole.cut] if second is None else reader.read(second)
        found = align_pieces(tokenizer, split, read, ids, allow_special_tokens)
        if found is None and offsets:
            raise no_offsets_error(tokenizer, position)
        if found is None:
            raise InputTooLongError(
                f"Text {position + 1} is longer than the {limit:,} tokens that the model takes, and its "
                f"{type(tokenizer).__name__} does not tell where they end in the text, so it cannot be cut "
                "(long_input='truncate').\nRegister the model with: long_input='window'",
                limit=limit,
                position=position,
            )
    return [_align(part, found, offsets, _split_length(text)) for part in parts], step


def _align(part: Encoded, found: Sequence[AlignedPiece] | None, offsets: bool, length: int) -> _Piece:
    """Return a window of a tokenizer that is written in Python.

    Args:
        part: The window.
        found: The places of all tokens of the text; None if they are not needed.
        offsets: Whether the window needs words and offsets.
        length: The length of the text.
    """
    if found is None:
        return _Piece(part.ids, part.special, part.cut, length, part.types)
    here = dict(zip(part.cut, found[part.begin :], strict=False))
    end = here[part.cut[-1]].place[1] if part.cut else 0
    if not offsets:
        return _Piece(part.ids, part.special, part.cut, end, part.types)
    words = [here[k].word if k in here else None for k in range(len(part.ids))]
    places = [here[k].place if k in here else (0, 0) for k in range(len(part.ids))]
    return _Piece(part.ids, part.special, part.cut, end, part.types, words, places)


def _find_step(
    tokenizer: "PreTrainedTokenizerBase",
    first: str | list[str],
    second: str | None,
    position: int,
    allow_special_tokens: bool,
) -> int:
    """Return how many tokens neighbouring windows share."""
    return min(STRIDE, _room_for_text(tokenizer, first, second, position, allow_special_tokens) // 4)


def _room_for_text(
    tokenizer: "PreTrainedTokenizerBase",
    first: str | list[str],
    second: str | None,
    position: int,
    allow_special_tokens: bool,
) -> int:
    """Return how many tokens of the text that is split fit into a window."""
    limit = tokenizer.model_max_length
    taken = tokenizer.num_special_tokens_to_add(pair=second is not None)
    if second is not None:
        splits: dict[str, Any] = {"add_special_tokens": False, "split_special_tokens": not allow_special_tokens}
        taken += len(tokenizer(first, **splits, verbose=False)["input_ids"])
    if limit > taken:
        return limit - taken
    if second is None:
        raise LoadError(
            f"The maximum length of {limit:,} tokens leaves no room for a text: the tokenizer adds {taken:,} special "
            "tokens.\nRegister the model with a larger max_length."
        )
    raise InputTooLongError(
        f"The first text of pair {position + 1} leaves no room for the second: the model takes {limit:,} tokens."
        "\nShorten the first text.",
        limit=limit,
        position=position,
    )


def too_long_error(position: int, limit: int) -> InputTooLongError:
    """Return the error for a text that is longer than a window and must not be split."""
    return InputTooLongError(
        f"Text {position + 1} is longer than the {limit:,} tokens that the model takes, and must not be split "
        "(long_input='error').\nShorten the text, or register the model with: long_input='window'",
        limit=limit,
        position=position,
    )


def check_token_count(tokens: int, limit: int, position: int) -> None:
    """Raise InputTooLongError if a text that cannot be split has more tokens than the model takes."""
    if tokens > limit:
        raise InputTooLongError(
            f"Text {position + 1} has {tokens:,} tokens; the model takes {limit:,}.\nShorten the text.",
            limit=limit,
            position=position,
        )

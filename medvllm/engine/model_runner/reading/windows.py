"""Splits long texts into windows that the model can read, and reports what they cover."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.foreign_errors import translate_tokenizer_errors
from medvllm.engine.model_runner.inputs import Text
from medvllm.errors import InputTooLongError, LoadError, RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRIDE = 64  # tokens that neighbouring windows share, so that each token has context on both sides


@dataclass(frozen=True)
class Window:
    """One window of a text, as token ids with special tokens.

    Attributes:
        text: The position of the text in the request.
        input_ids: The token ids.
        counted: For each token, 1 if this window counts it and 0 if another window does.
        types: For each token, the number of its text in a pair; empty if the tokenizer does not tell.
        words: For each token, the number of its word in the text, None for special tokens; empty if not requested.
        offsets: For each token, its start and end in the text, in Unicode code points; empty if not requested.
    """

    text: int
    input_ids: list[int]
    counted: list[int]
    types: Sequence[int] = ()
    words: Sequence[int | None] = ()
    offsets: Sequence[tuple[int, int]] = ()


def split_into_windows(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[Text],
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
        texts: The texts or pairs.
        policy: `long_input` of the entry: "window" (also None), "error" or "truncate".
        offsets: Whether the windows need `words` and `offsets`.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. By default, they are text.

    Raises:
        InputTooLongError: A text is longer than a window, and the policy or the tokenizer forbids splitting it.
        RequestError: `offsets` is set, and the tokenizer has no offsets.
    """
    if offsets and not tokenizer.is_fast:
        raise RequestError(
            f"Tokenizer {type(tokenizer).__name__} does not give the offsets of its tokens, which spans need."
        )
    limit = tokenizer.model_max_length
    windows: list[Window] = []
    coverage: list[Coverage] = []
    for position, text in enumerate(texts):
        with translate_tokenizer_errors(position):
            pieces, step = _tokenize(tokenizer, text, position, offsets, allow_special_tokens)
        if len(pieces) > 1 and policy == "error":
            raise InputTooLongError(
                f"Text {position + 1} is longer than the {limit:,} tokens that the model takes, and must not be split "
                "(long_input='error').\nShorten the text, or register the model with: long_input='window'",
                limit=limit,
                position=position,
            )
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
        end = len(text if isinstance(text, str) else text[1]) if len(kept) == len(pieces) else kept[-1].end
        coverage.append(Coverage(((0, end),) if end else (), tokens, unknown, len(kept), len(kept) < len(pieces)))
    return windows, coverage


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
    tokenizer: "PreTrainedTokenizerBase", text: Text, position: int, offsets: bool, allow_special_tokens: bool
) -> tuple[list[_Piece], int]:
    """Return the windows that a text needs, and how many tokens neighbouring windows share."""
    first, second = (text, None) if isinstance(text, str) else text
    if not tokenizer.is_fast:
        return [_tokenize_whole(tokenizer, first, second, position, allow_special_tokens)], 0
    limit = tokenizer.model_max_length
    step = min(STRIDE, _room_for_text(tokenizer, first, second, position, allow_special_tokens) // 4)
    encoding = tokenizer(
        [first],  # as a list: otherwise, transformers leaves out an empty second text
        None if second is None else [second],
        truncation=True if second is None else "only_second",
        max_length=limit,
        stride=step,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        split_special_tokens=not allow_special_tokens,
    )
    pieces = []
    for i, (ids, special) in enumerate(zip(encoding["input_ids"], encoding["special_tokens_mask"], strict=True)):
        belongs = encoding.sequence_ids(i)
        cut = [k for k, is_special in enumerate(special) if not is_special and (second is None or belongs[k] == 1)]
        types = encoding["token_type_ids"][i] if "token_type_ids" in encoding else ()
        words, places = (encoding.word_ids(i), encoding[i].offsets) if offsets else ((), ())
        end = encoding[i].offsets[cut[-1]][1] if cut else 0
        pieces.append(_Piece(ids, special, cut, end, types, words, places))
    return pieces, step


def _tokenize_whole(
    tokenizer: "PreTrainedTokenizerBase", first: str, second: str | None, position: int, allow_special_tokens: bool
) -> _Piece:
    """Return a text as one window, for a tokenizer written in Python, which cannot split."""
    encoding = tokenizer(
        [first],
        None if second is None else [second],
        return_special_tokens_mask=True,
        split_special_tokens=not allow_special_tokens,
        verbose=False,
    )
    ids, special = encoding["input_ids"][0], encoding["special_tokens_mask"][0]
    check_token_count(len(ids), tokenizer.model_max_length, position)
    content = [k for k, is_special in enumerate(special) if not is_special]
    end = len(first if second is None else second)
    return _Piece(ids, special, content, end, encoding["token_type_ids"][0] if "token_type_ids" in encoding else ())


def _room_for_text(
    tokenizer: "PreTrainedTokenizerBase", first: str, second: str | None, position: int, allow_special_tokens: bool
) -> int:
    """Return how many tokens of the text that is split fit into a window."""
    limit = tokenizer.model_max_length
    taken = tokenizer.num_special_tokens_to_add(pair=second is not None)
    if second is not None:
        splits = {"add_special_tokens": False, "split_special_tokens": not allow_special_tokens}
        taken += len(tokenizer(first, **splits, verbose=False)["input_ids"])
    if limit > taken:
        return limit - taken
    if second is None:
        raise LoadError(
            f"The maximum length of {limit:,} tokens leaves no room for a text: the tokenizer adds {taken:,} special "
            "tokens.\nRegister the model with a larger max_length."
        )
    raise InputTooLongError(
        f"The first text of pair {position + 1} leaves no room for the second: the model takes {limit:,} tokens.",
        limit=limit,
        position=position,
    )


def check_token_count(tokens: int, limit: int, position: int) -> None:
    """Raise InputTooLongError if a text that cannot be split has more tokens than the model takes."""
    if tokens > limit:
        raise InputTooLongError(
            f"Text {position + 1} has {tokens:,} tokens; the model takes {limit:,}.", limit=limit, position=position
        )

"""Long texts -> windows of at most the model's length, and what of each text they cover."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvllm.engine.model_runner.edge import reading
from medvllm.engine.model_runner.inputs import Text
from medvllm.errors import InputTooLongError, LoadError, RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRIDE = 64  # tokens that neighbouring windows share, so that each token has context on both sides


@dataclass(frozen=True)
class Window:
    """Token ids of one window, special tokens included. `counted`: 1 for tokens that no other window counts.

    `words` and `offsets` are there when asked for: of each token, the number of its word in the text (None for special
    tokens), and where it stands in the text, in Unicode code points.
    """

    text: int  # the text's position in the request
    input_ids: list[int]
    counted: list[int]
    types: Sequence[int] = ()  # which text of a pair each token is of, where the tokenizer tells
    words: Sequence[int | None] = ()
    offsets: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Coverage:
    """What of a text the model saw: content tokens, in how many windows, and whether the rest was left out.

    `unknown` of the tokens stand for words that the vocabulary lacks.
    """

    tokens: int
    unknown: int
    windows: int
    truncated: bool


def split(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Text], policy: str | None, *, offsets: bool = False
) -> tuple[list[Window], list[Coverage]]:
    """Return every text's windows in order, and each text's coverage. A text without any token has one empty window.

    `policy` is the entry's: "window" (the default), "error" (InputTooLongError) or "truncate" (said in the coverage).
    Of the tokens that two windows share, each counts those that lie further from its edge. Of a pair, the second text
    is cut, and the first stands in every window. RequestError: `offsets` are asked of a tokenizer that has none.
    """
    if offsets and not tokenizer.is_fast:
        raise RequestError(f"A {type(tokenizer).__name__} does not tell where its tokens stand in a text.")
    limit = tokenizer.model_max_length
    windows: list[Window] = []
    coverage: list[Coverage] = []
    for position, text in enumerate(texts):
        with reading(position):
            pieces, step = _pieces(tokenizer, text, position, offsets)
        if len(pieces) > 1 and policy == "error":
            raise InputTooLongError(
                f"Text {position + 1} is longer than the {limit:,} tokens that the model takes.\n"
                "Its entry forbids cutting: shorten it, or register the model with long_input='window'",
                limit=limit,
                position=position,
            )
        kept = pieces[:1] if policy == "truncate" else pieces
        tokens = 0
        for i, piece in enumerate(kept):
            first, last = step // 2 if i else 0, len(piece.cut) - (step - step // 2 if i < len(kept) - 1 else 0)
            # What is not cut stands in every window, and counts once.
            counted = {*piece.cut[first:last], *(() if i else set(range(len(piece.input_ids))) - set(piece.cut))}
            marks = [int(k in counted) for k in range(len(piece.input_ids))]
            tokens += sum(mark and not special for mark, special in zip(marks, piece.special, strict=True))
            windows.append(Window(position, piece.input_ids, marks, piece.types, piece.words, piece.offsets))
        fresh = (
            token
            for window in windows[-len(kept) :]
            for token, counts in zip(window.input_ids, window.counted, strict=True)
            if counts
        )
        unknown = sum(token == tokenizer.unk_token_id for token in fresh)
        coverage.append(Coverage(tokens, unknown, len(kept), truncated=len(kept) < len(pieces)))
    return windows, coverage


@dataclass(frozen=True)
class _Piece:
    """One window as the tokenizer gives it; `cut` are the places of the tokens of the text that is cut."""

    input_ids: list[int]
    special: list[int]
    cut: list[int]
    types: Sequence[int]
    words: Sequence[int | None] = ()
    offsets: Sequence[tuple[int, int]] = ()


def _pieces(tokenizer: "PreTrainedTokenizerBase", text: Text, position: int, offsets: bool) -> tuple[list[_Piece], int]:
    """Return the windows that a text needs, and how many tokens neighbours share."""
    first, second = (text, None) if isinstance(text, str) else text
    limit = tokenizer.model_max_length
    if not tokenizer.is_fast:
        encoding = tokenizer(first, second, return_special_tokens_mask=True, verbose=False)
        ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
        if len(ids) > limit:
            raise InputTooLongError(
                f"Text {position + 1} has {len(ids):,} tokens; the model takes {limit:,}.",
                limit=limit,
                position=position,
            )
        content = [k for k, is_special in enumerate(special) if not is_special]
        return [_Piece(ids, special, content, encoding.get("token_type_ids", ()))], 0
    taken = tokenizer.num_special_tokens_to_add(pair=second is not None)
    if second is not None:
        taken += len(tokenizer(first, add_special_tokens=False, verbose=False)["input_ids"])
    step = min(STRIDE, (limit - taken) // 4)
    if limit <= taken:
        if second is None:
            raise LoadError(f"The tokenizer's length of {limit:,} tokens leaves none for a text: it adds {taken:,}.")
        raise InputTooLongError(
            f"The first of pair {position + 1} leaves no room for the second in {limit:,} tokens.",
            limit=limit,
            position=position,
        )
    encoding = tokenizer(
        first,
        second,
        truncation=True if second is None else "only_second",
        max_length=limit,
        stride=step,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=offsets,
    )
    pieces = []
    for i, (ids, special) in enumerate(zip(encoding["input_ids"], encoding["special_tokens_mask"], strict=True)):
        belongs = encoding.sequence_ids(i)
        cut = [k for k, is_special in enumerate(special) if not is_special and (second is None or belongs[k] == 1)]
        types = encoding["token_type_ids"][i] if "token_type_ids" in encoding else ()
        words = encoding.word_ids(i) if offsets else ()
        pieces.append(_Piece(ids, special, cut, types, words, encoding["offset_mapping"][i] if offsets else ()))
    return pieces, step

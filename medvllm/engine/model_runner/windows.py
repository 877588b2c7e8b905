"""Long texts -> windows of at most the model's length, and what of each text they cover."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvllm.errors import InputTooLongError, RequestError

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


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return the texts as a list, or raise RequestError that names the position, never the text."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        kind = "one text" if isinstance(texts, str) else type(texts).__name__
        raise RequestError(f"Texts must be a list of texts, not {kind}.\nWrite it as: [text]")
    listed = list(texts)
    for position, text in enumerate(listed, 1):
        if not isinstance(text, str):
            raise RequestError(f"Text {position} must be text, not {type(text).__name__}.")
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise RequestError(f"Text {position} is not Unicode: bytes of another encoding were read into it.")
    return listed


def split(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], policy: str | None, *, offsets: bool = False
) -> tuple[list[Window], list[Coverage]]:
    """Return every text's windows in order, and each text's coverage.

    `policy` is the entry's: "window" (the default), "error" (InputTooLongError) or "truncate" (said in the coverage).
    Of the tokens that two windows share, each counts those that lie further from its edge. RequestError: `offsets` are
    asked of a tokenizer that has none.
    """
    if offsets and not tokenizer.is_fast:
        raise RequestError(f"A {type(tokenizer).__name__} does not tell where its tokens stand in a text.")
    limit = tokenizer.model_max_length
    step = min(STRIDE, (limit - tokenizer.num_special_tokens_to_add()) // 4)
    windows: list[Window] = []
    coverage: list[Coverage] = []
    for position, text in enumerate(texts):
        pieces = _pieces(tokenizer, text, limit, step, offsets)
        if len(pieces) > 1 and policy == "error":
            raise InputTooLongError(
                f"Text {position + 1} is longer than the {limit:,} tokens that the model takes.\n"
                "Its entry forbids cutting: shorten it, or register the model with long_input='window'",
                limit=limit,
                position=position,
            )
        kept = pieces[:1] if policy == "truncate" else pieces
        for i, (ids, special, *places) in enumerate(kept):
            content = [k for k, is_special in enumerate(special) if not is_special]
            first, last = step // 2 if i else 0, len(content) - (step - step // 2 if i < len(kept) - 1 else 0)
            # Special tokens stand in every window, and count once.
            counted = {*content[first:last], *(() if i else set(range(len(ids))) - set(content))}
            windows.append(Window(position, ids, [int(k in counted) for k in range(len(ids))], *places))
        tokens = sum(special.count(0) for _, special, *_ in kept) - step * (len(kept) - 1)
        fresh = (
            token
            for window in windows[-len(kept) :]
            for token, counts in zip(window.input_ids, window.counted, strict=True)
            if counts
        )
        unknown = sum(token == tokenizer.unk_token_id for token in fresh)
        coverage.append(Coverage(tokens, unknown, len(kept), truncated=len(kept) < len(pieces)))
    return windows, coverage


def _pieces(
    tokenizer: "PreTrainedTokenizerBase", text: str, limit: int, step: int, offsets: bool
) -> list[tuple[Any, ...]]:
    """Return what a `Window` takes of each window that a text needs, the special-token mask in place of `counted`.

    Neighbours share `step` tokens.
    """
    if not tokenizer.is_fast:
        encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
        if len(encoding["input_ids"]) > limit:
            raise InputTooLongError(
                f"A text has {len(encoding['input_ids']):,} tokens; the model takes {limit:,}.", limit=limit
            )
        return [(encoding["input_ids"], encoding["special_tokens_mask"])]
    encoding = tokenizer(
        text,
        truncation=True,
        max_length=limit,
        stride=step,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        return_offsets_mapping=offsets,
    )
    columns = [encoding["input_ids"], encoding["special_tokens_mask"]]
    if offsets:
        columns += [[encoding.word_ids(i) for i in range(len(columns[0]))], encoding["offset_mapping"]]
    return list(zip(*columns, strict=True))

"""Long texts -> windows of at most the model's length, and what of each text they cover."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvllm.errors import InputTooLongError, RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRIDE = 64  # tokens that neighbouring windows share, so that each token has context on both sides


@dataclass(frozen=True)
class Window:
    """Token ids of one window, special tokens included. `counted`: 1 for tokens that no earlier window has."""

    text: int  # the text's position in the request
    input_ids: list[int]
    counted: list[int]


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
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], policy: str | None
) -> tuple[list[Window], list[Coverage]]:
    """Return every text's windows in order, and each text's coverage.

    `policy` is the entry's: "window" (the default), "error" (InputTooLongError) or "truncate" (said in the coverage).
    """
    limit = tokenizer.model_max_length
    step = min(STRIDE, (limit - tokenizer.num_special_tokens_to_add()) // 4)
    windows: list[Window] = []
    coverage: list[Coverage] = []
    for position, text in enumerate(texts):
        pieces = _pieces(tokenizer, text, limit, step)
        if len(pieces) > 1 and policy == "error":
            raise InputTooLongError(
                f"Text {position + 1} is longer than the {limit:,} tokens that the model takes.\n"
                "Its entry forbids cutting: shorten it, or register the model with long_input='window'",
                limit=limit,
                position=position,
            )
        kept = pieces[:1] if policy == "truncate" else pieces
        for ids, special in kept:
            # Later windows count neither special tokens nor what the window before has counted.
            shared = 0 if ids is kept[0][0] else step
            content = [i for i, is_special in enumerate(special) if not is_special][shared:]
            counted = set(content) if shared else set(range(len(ids)))
            windows.append(Window(position, ids, [int(i in counted) for i in range(len(ids))]))
        tokens = sum(special.count(0) for _, special in kept) - step * (len(kept) - 1)
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
    tokenizer: "PreTrainedTokenizerBase", text: str, limit: int, step: int
) -> list[tuple[list[int], list[int]]]:
    """Return the ids and the special-token mask of each window that a text needs; neighbours share `step` tokens."""
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
    )
    return list(zip(encoding["input_ids"], encoding["special_tokens_mask"], strict=True))

"""Gaps in texts -> the word pieces that fill them."""

from collections.abc import Iterable
from dataclasses import dataclass

from medvllm import progress
from medvllm.engine.model_runner.batches import batches, check_numbers, run, unsound
from medvllm.engine.model_runner.edge import reading
from medvllm.engine.model_runner.inputs import plain_texts
from medvllm.engine.model_runner.windows import Window
from medvllm.errors import InputTooLongError, RequestError
from medvllm.model_registry import Lease


@dataclass(frozen=True)
class Fill:
    """A word piece for a gap, and the model's probability for it."""

    token: str
    score: float


def fill_mask(lease: Lease, texts: Iterable[str], *, top_k: int = 5) -> list[list[list[Fill]]]:
    """Return for each text, for each of its gaps, the `top_k` likeliest word pieces, the likeliest first.

    A gap is written as [MASK] or as the tokenizer's own mask. InputTooLongError: the model cannot take a text whole.
    """
    if type(top_k) is not int or top_k < 1:
        raise RequestError(f"top_k must be at least 1, not {top_k!r}.", top_k=top_k)
    tokenizer, model = lease.tokenizer, lease.model
    if not type(model).__name__.endswith("ForMaskedLM") or tokenizer.mask_token_id is None:
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(model).__name__}, which fills no gaps.\n"
            "If its checkpoint has the head: model_class='transformers:AutoModelForMaskedLM'",
            model=lease.metadata.name,
        )
    marked = [text.replace("[MASK]", str(tokenizer.mask_token)) for text in plain_texts(lease, texts, "fill-mask")]
    windows: list[Window] = []
    for position, text in enumerate(marked):
        with reading(position):
            encoding = tokenizer(text, verbose=False)
        ids = encoding["input_ids"]
        if len(ids) > tokenizer.model_max_length:
            raise InputTooLongError(
                f"Text {position + 1} has {len(ids):,} tokens; the model takes {tokenizer.model_max_length:,}.",
                limit=tokenizer.model_max_length,
                position=position,
            )
        if tokenizer.mask_token_id not in ids:
            raise RequestError(f"Text {position + 1} has no gap to fill.\nWrite the gap as: [MASK]", position=position)
        windows.append(Window(position, ids, [1] * len(ids), encoding.get("token_type_ids", ())))
    results: list[list[list[Fill]]] = [[] for _ in marked]
    lacking: set[int] = set()
    for batch in progress.of_items("Running", batches(lease, model, windows)):
        logits = run(lease, model, batch, "logits")
        for row, window in enumerate(batch):
            gaps = [i for i, token in enumerate(window.input_ids) if token == tokenizer.mask_token_id]
            scores, tokens = logits[row, gaps].softmax(-1).topk(min(top_k, logits.shape[-1]))
            lacking |= unsound(scores, [window.text] * len(gaps))
            results[window.text] = [
                [Fill(str(tokenizer.decode([token])).strip(), score) for token, score in zip(ids, values, strict=True)]
                for ids, values in zip(tokens.tolist(), scores.tolist(), strict=True)
            ]
    check_numbers(lease, lacking)
    return results

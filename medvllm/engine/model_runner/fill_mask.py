"""The task fill-mask: word pieces for the gaps in texts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from medvllm import progress
from medvllm.engine.model_runner.batches import batch_windows, check_finite, nonfinite_positions, run_batch
from medvllm.engine.model_runner.foreign_errors import translate_tokenizer_errors
from medvllm.engine.model_runner.inputs import check_single_texts
from medvllm.engine.model_runner.results import Cell
from medvllm.engine.model_runner.windows import Window, check_token_count
from medvllm.errors import RequestError
from medvllm.model_registry import Lease


@dataclass(frozen=True)
class Fill:
    """A word piece for a gap.

    Attributes:
        token: The word piece as text.
        score: Its probability, from 0 to 1.
    """

    token: str
    score: float


class FillMaskResults(list[list[list[Fill]]]):
    """For each text, for each gap in it, the most likely word pieces, best first."""

    columns: ClassVar[tuple[str, ...]] = ("TEXT", "GAP", "TOKEN", "SCORE")

    def rows(self, texts: Sequence[Any]) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each word piece."""
        for number, gaps in enumerate(self, 1):
            for gap_number, fills in enumerate(gaps, 1):
                for fill in fills:
                    yield number, gap_number, fill.token, fill.score

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [{"gaps": [[vars(fill) for fill in fills] for fills in gaps]} for gaps in self]


def fill_mask(lease: Lease, texts: Iterable[str], *, top_k: int = 5) -> FillMaskResults:
    """Return the `top_k` most likely word pieces for each gap of each text.

    A gap is written as [MASK] or as the tokenizer's own mask.

    Raises:
        InputTooLongError: A text is longer than the model can read at once.
        RequestError: The model cannot fill gaps, or a text has none.
    """
    if type(top_k) is not int or top_k < 1:
        raise RequestError(f"top_k must be at least 1, not {top_k!r}.", top_k=top_k)
    tokenizer, model = lease.tokenizer, lease.model
    if not type(model).__name__.endswith("ForMaskedLM") or tokenizer.mask_token_id is None:
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(model).__name__}, which cannot fill gaps.\n"
            "If its checkpoint has a masked language model head, register it with: "
            "model_class='transformers:AutoModelForMaskedLM'",
            model=lease.metadata.name,
        )
    given = [
        text.replace("[MASK]", str(tokenizer.mask_token)) for text in check_single_texts(lease, texts, "fill-mask")
    ]
    windows = [_tokenize(tokenizer, text, position) for position, text in enumerate(given)]
    results = FillMaskResults([] for _ in given)
    nonfinite: set[int] = set()
    for batch in progress.track_items("Running", batch_windows(lease, model, windows)):
        logits = run_batch(lease, model, batch, "logits")
        for row, window in enumerate(batch):
            gaps = [i for i, token in enumerate(window.input_ids) if token == tokenizer.mask_token_id]
            scores, tokens = logits[row, gaps].softmax(-1).topk(min(top_k, logits.shape[-1]))
            nonfinite |= nonfinite_positions(scores, [window.text] * len(gaps))
            results[window.text] = [
                [Fill(str(tokenizer.decode([token])).strip(), score) for token, score in zip(ids, values, strict=True)]
                for ids, values in zip(tokens.tolist(), scores.tolist(), strict=True)
            ]
    check_finite(lease, nonfinite)
    return results


def _tokenize(tokenizer: Any, text: str, position: int) -> Window:
    """Return a text as one window; it must have a gap."""
    with translate_tokenizer_errors(position):
        encoding = tokenizer(text, verbose=False)
    ids = encoding["input_ids"]
    check_token_count(len(ids), tokenizer.model_max_length, position)
    if tokenizer.mask_token_id not in ids:
        raise RequestError(f"Text {position + 1} has no gap to fill.\nWrite the gap as: [MASK]", position=position)
    return Window(position, ids, [1] * len(ids), encoding.get("token_type_ids", ()))

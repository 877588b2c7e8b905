"""The task fill-mask: word pieces for the gaps in texts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from medvllm import progress
from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.foreign_errors import translate_tokenizer_errors
from medvllm.engine.model_runner.inputs import check_single_texts
from medvllm.engine.model_runner.reading.batches import batch_windows, check_finite, nonfinite_positions, run_batch
from medvllm.engine.model_runner.reading.windows import Window, check_token_count
from medvllm.engine.model_runner.results import Cell, Result
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


class FilledText(list[list[Fill]]):
    """For each gap in a text, the most likely word pieces, best first.

    Attributes:
        coverage: What the model read of the text.
    """

    def __init__(self, gaps: Iterable[list[Fill]], coverage: Coverage) -> None:
        super().__init__(gaps)
        self.coverage = coverage


class FillMaskResults(Result, list[FilledText]):
    """For each text, for each gap in it, the most likely word pieces, best first."""

    columns: ClassVar[tuple[str, ...]] = ("text", "gap", "token", "score")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each word piece."""
        for number, gaps in enumerate(self, 1):
            for gap_number, fills in enumerate(gaps, 1):
                for fill in fills:
                    yield number, gap_number, fill.token, fill.score

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [gaps.coverage.to_dict() | {"gaps": [[vars(fill) for fill in fills] for fills in gaps]} for gaps in self]


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
    read = [_tokenize(tokenizer, text, position) for position, text in enumerate(given)]
    windows = [window for window, _ in read]
    filled: dict[int, list[list[Fill]]] = {}
    nonfinite: set[int] = set()
    for batch in progress.track_items("Running", batch_windows(lease, model, windows)):
        logits = run_batch(lease, model, batch, "logits")
        for row, window in enumerate(batch):
            gaps = [i for i, token in enumerate(window.input_ids) if token == tokenizer.mask_token_id]
            scores, tokens = logits[row, gaps].softmax(-1).topk(min(top_k, logits.shape[-1]))
            nonfinite |= nonfinite_positions(scores, [window.text] * len(gaps))
            filled[window.text] = [
                [Fill(str(tokenizer.decode([token])).strip(), score) for token, score in zip(ids, values, strict=True)]
                for ids, values in zip(tokens.tolist(), scores.tolist(), strict=True)
            ]
    check_finite(lease, nonfinite)
    return FillMaskResults(FilledText(filled[window.text], coverage) for window, coverage in read)


def _tokenize(tokenizer: Any, text: str, position: int) -> tuple[Window, Coverage]:
    """Return a text as one window, and its coverage. It must have a gap."""
    with translate_tokenizer_errors(position):
        encoding = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids = encoding["input_ids"]
    check_token_count(len(ids), tokenizer.model_max_length, position)
    if tokenizer.mask_token_id not in ids:
        raise RequestError(f"Text {position + 1} has no gap to fill.\nWrite the gap as: [MASK]", position=position)
    tokens = sum(not special for special in encoding["special_tokens_mask"])
    coverage = Coverage(((0, len(text)),), tokens, ids.count(tokenizer.unk_token_id), 1, False)
    return Window(position, ids, [1] * len(ids), encoding.get("token_type_ids", ())), coverage

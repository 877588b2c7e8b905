"""The tasks ner and deid: the spans that a token classifier finds in texts."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from medvllm import progress
from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.inputs import check_single_texts
from medvllm.engine.model_runner.reading.batches import batch_windows, check_finite, nonfinite_positions, run_batch
from medvllm.engine.model_runner.reading.windows import split_into_windows
from medvllm.engine.model_runner.results import Cell, Result
from medvllm.engine.model_runner.tagging.spans import Span, Word, decode_labels, infer_scheme
from medvllm.errors import RequestError
from medvllm.model_registry import Lease


@dataclass(frozen=True)
class Entities:
    """The entities of one text.

    Attributes:
        spans: The spans, in the order of the text.
        coverage: What the model read of the text.
    """

    spans: list[Span]
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the text, for JSON."""
        return self.coverage.to_dict() | {"spans": [vars(span) for span in self.spans]}


class EntityResults(Result, list[Entities]):
    """The entities of each text."""

    columns: ClassVar[tuple[str, ...]] = ("text", "start", "end", "label", "score", "span")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each span; the last cell is its text."""
        for number, found in enumerate(self, 1):
            for span in found.spans:
                yield number, span.start, span.end, span.label, span.score, span.text

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [found.to_dict() for found in self]


def find_entities(lease: Lease, texts: Iterable[str], *, allow_special_tokens: bool = False) -> EntityResults:
    """Return the spans that the model finds in each text. A word has the label of its first piece.

    A text longer than the model is read in overlapping windows. A text without any token has no spans.

    Args:
        lease: The model in use.
        texts: The texts.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens.

    Raises:
        RequestError: The model is not a token classifier.
    """
    model, behaviour = lease.model, lease.metadata.behaviour
    if not is_token_classifier(model):
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(model).__name__}, which finds no entities.\n"
            "List the models that do with: medvllm list --task ner",
            model=lease.metadata.name,
        )
    labels: dict[int, str] = model.config.id2label
    given = check_single_texts(lease, texts, "ner")
    windows, coverage = split_into_windows(
        lease.tokenizer, given, behaviour.long_input, offsets=True, allow_special_tokens=allow_special_tokens
    )
    pieces: list[list[tuple[int, Word]]] = [[] for _ in coverage]
    nonfinite: set[int] = set()
    for batch in progress.track_items("Running", batch_windows(lease, model, windows)):
        logits = run_batch(lease, model, batch, "logits")
        # A label at minus infinity is an error, too: it could never be found.
        nonfinite |= nonfinite_positions(logits, [window.text for window in batch])
        scores, classes = logits.softmax(-1).max(-1)
        for window, row, chosen in zip(batch, scores.tolist(), classes.tolist(), strict=True):
            for i, word in enumerate(window.words):
                if word is not None and window.counted[i]:
                    pieces[window.text].append((word, Word(*window.offsets[i], labels[chosen[i]], row[i])))
    check_finite(lease, nonfinite)
    scheme = behaviour.label_scheme or infer_scheme(labels.values())
    return EntityResults(
        Entities(decode_labels(_join_pieces(found), scheme, text), covered)
        for text, found, covered in zip(given, pieces, coverage, strict=True)
    )


def is_token_classifier(model: Any) -> bool:
    """Return whether a model labels tokens."""
    return type(model).__name__.endswith("ForTokenClassification")


def _join_pieces(pieces: list[tuple[int, Word]]) -> Iterator[Word]:
    """Yield the words of a text in order. A word has the label of its first piece and the end of its last."""
    for _, group in groupby(sorted(pieces, key=lambda piece: piece[1].start), key=lambda piece: piece[0]):
        first, *more = (word for _, word in group)
        yield first._replace(end=more[-1].end if more else first.end)

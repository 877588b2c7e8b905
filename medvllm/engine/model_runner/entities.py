"""Texts -> the spans that a tagger finds in them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from medvllm import progress
from medvllm.engine.model_runner.batches import batches, check_numbers, run, unsound
from medvllm.engine.model_runner.inputs import plain_texts
from medvllm.engine.model_runner.spans import Span, Word, decode, scheme_of
from medvllm.engine.model_runner.windows import Coverage, split
from medvllm.errors import RequestError
from medvllm.model_registry import Lease


@dataclass(frozen=True)
class Entities:
    """The spans of one text, in its order, and what of it they cover."""

    spans: list[Span]
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the text, as JSON has it."""
        return vars(self.coverage) | {"spans": [vars(span) for span in self.spans]}


def find_entities(lease: Lease, texts: Iterable[str]) -> list[Entities]:
    """Return the spans that the model finds in each text; a word has the label of its first piece.

    A text longer than the model is read in overlapping windows; one without any token has no spans. RequestError: the
    model is no tagger.
    """
    model, behaviour = lease.model, lease.metadata.behaviour
    if not is_token_classifier(model):
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(model).__name__}, which finds no spans.\n"
            "Taggers are listed with: medvllm list --task ner",
            model=lease.metadata.name,
        )
    labels: dict[int, str] = model.config.id2label
    windows, coverage = split(lease.tokenizer, plain_texts(lease, texts, "ner"), behaviour.long_input, offsets=True)
    pieces: list[list[tuple[int, Word]]] = [[] for _ in coverage]
    lacking: set[int] = set()
    for batch in progress.of_items("Running", batches(lease, model, windows)):
        logits = run(lease, model, batch, "logits")
        lacking |= unsound(logits, [window.text for window in batch])  # a label at -inf would never be found
        scores, classes = logits.softmax(-1).max(-1)
        for window, row, chosen in zip(batch, scores.tolist(), classes.tolist(), strict=True):
            for i, word in enumerate(window.words):
                if word is not None and window.counted[i]:
                    pieces[window.text].append((word, Word(*window.offsets[i], labels[chosen[i]], row[i])))
    check_numbers(lease, lacking)
    scheme = behaviour.label_scheme or scheme_of(labels.values())
    return [Entities(decode(_joined(found), scheme), covered) for found, covered in zip(pieces, coverage, strict=True)]


def is_token_classifier(model: Any) -> bool:
    """Return whether a model labels tokens."""
    return type(model).__name__.endswith("ForTokenClassification")


def _joined(pieces: list[tuple[int, Word]]) -> Iterator[Word]:
    """Give the words of a text in order: each with its first piece's label, to the end of its last."""
    for _, group in groupby(sorted(pieces, key=lambda piece: piece[1].start), key=lambda piece: piece[0]):
        first, *more = (word for _, word in group)
        yield first._replace(end=more[-1].end if more else first.end)

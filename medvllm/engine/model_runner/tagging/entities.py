"""The tasks ner and deid: the spans that a token classifier finds in texts."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.inputs import check_texts_or_words
from medvllm.engine.model_runner.option_checks import check_choice, check_flag, check_long_input
from medvllm.engine.model_runner.reading.windows import LongInput
from medvllm.engine.model_runner.results import Cell, Result
from medvllm.engine.model_runner.tagging.aggregation import AGGREGATIONS, label_by
from medvllm.engine.model_runner.tagging.spans import Span, find_spans
from medvllm.engine.model_runner.tagging.tagged_text import label_words, read_labels
from medvllm.errors import RequestError
from medvllm.label_schemes import LabelScheme
from medvllm.model_registry import Lease
from medvllm.near_names import did_you_mean, near_names


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


def find_entities(
    lease: Lease,
    texts: Iterable[str | Sequence[str]],
    *,
    threshold: float = 0.0,
    labels: Sequence[str] | None = None,
    aggregation: str | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> EntityResults:
    """Return the spans that the model finds in each text.

    A text longer than the model is by default read in overlapping windows. A text without any token has no spans.

    Args:
        lease: The model in use.
        texts: The texts, or lists of words.
        threshold: Spans with a lower score are left out.
        labels: The types of entities to return; None for all.
        aggregation: How the labels of a word's pieces become the label of the word. By default, the entry's, or else
            "first" if words are given, "any" if the entry's task is deid, and "first" otherwise.
        long_input: What becomes of a text that is longer than the model; None for what the entry says.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens.

    Raises:
        RequestError: The model is not a token classifier, or an option or a text cannot be used.
    """
    default = "any" if lease.metadata.behaviour.task == "deid" else "first"
    return _find(lease, texts, threshold, labels, aggregation, long_input, allow_special_tokens, default)


def find_identifiers(
    lease: Lease,
    texts: Iterable[str | Sequence[str]],
    *,
    threshold: float = 0.0,
    labels: Sequence[str] | None = None,
    aggregation: str | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> EntityResults:
    """Return what identifies a person in each text, as `find_entities` with the default of a de-identification model.

    The default of `aggregation` is "any": a word that is missed is worse than one that is found for nothing.

    Raises:
        RequestError: The entry names other tasks, and no `labels` are given; or as for `find_entities`.
    """
    stated = lease.metadata.without_folder_facts().tasks
    if labels is None and stated and "deid" not in stated:
        raise not_deid_error(lease, read_labels(lease), f"has the task {stated[0]!r}", "find only these labels")
    return _find(lease, texts, threshold, labels, aggregation, long_input, allow_special_tokens, "any")


def _find(
    lease: Lease,
    texts: Iterable[str | Sequence[str]],
    threshold: float,
    labels: Sequence[str] | None,
    aggregation: str | None,
    long_input: LongInput | None,
    allow_special_tokens: bool,
    default: str,
) -> EntityResults:
    wanted = check_labels(lease, read_labels(lease), labels)
    given = check_texts_or_words(lease, texts, "ner")
    stated = aggregation or lease.metadata.behaviour.aggregation
    results = EntityResults()
    for tagged in label_words(lease, given, long_input=long_input, allow_special_tokens=allow_special_tokens):
        # Of words split beforehand, models are trained on the first piece only: the others say nothing.
        words = label_by(stated or ("first" if tagged.given else default), tagged)
        spans = [
            span
            for span in find_spans(words, tagged.text)
            if span.score >= threshold and (wanted is None or span.label in wanted)
        ]
        results.append(Entities(spans, tagged.coverage))
    return results


def check_entity_options(
    *,
    threshold: float = 0.0,
    labels: Sequence[str] | None = None,
    aggregation: str | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> None:
    """Raise RequestError if an option has a wrong type or value. This needs no model."""
    is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not is_number or math.isnan(threshold) or not 0 <= threshold <= 1:
        raise RequestError(f"threshold must be a number from 0 to 1, not {threshold!r}.", threshold=threshold)
    if labels is not None and (
        isinstance(labels, str)
        or not isinstance(labels, (list, tuple, set, frozenset))
        or not all(isinstance(label, str) for label in labels)
    ):
        raise RequestError(
            f"labels must be a list of labels, not {type(labels).__name__}.\nWrite it as: labels=['DATE']"
        )
    if labels is not None and not labels:
        raise RequestError("labels must name at least one label.\nLeave it out for all: labels=None", option="labels")
    if aggregation is not None:
        check_choice("aggregation", aggregation, AGGREGATIONS)
    check_long_input(long_input)
    check_flag("allow_special_tokens", allow_special_tokens)


def not_deid_error(lease: Lease, scheme: LabelScheme, has: str, way_out: str) -> RequestError:
    """Return the error for a tagger that nobody calls a de-identifier, in a call that trusts it to find all names.

    Args:
        lease: The model in use.
        scheme: Its labels.
        has: What its entry says instead, such as "has the task 'ner'".
        way_out: What a caller can do with its labels, such as "redact only what it finds".
    """
    return RequestError(
        f"Model {lease.metadata.name!r} {has}, so it may leave names in a text.\n"
        "If it finds all that identifies someone, register it with: task='deid'\n"
        f"To {way_out}, say so: labels={list(scheme.kinds)!r}",
        model=lease.metadata.name,
    )


def check_labels(lease: Lease, scheme: LabelScheme, labels: Iterable[str] | None) -> tuple[str, ...] | None:
    """Return the types to find, or None for all. RequestError: the model has no such type."""
    if labels is None:
        return None
    wanted = tuple(dict.fromkeys(labels))
    if unknown := next((label for label in wanted if label not in scheme.kinds), None):
        near = near_names(unknown, scheme.kinds)
        raise RequestError(
            f"Model {lease.metadata.name!r} has no label {unknown!r}.{did_you_mean(near)}\n"
            f"Its labels: {', '.join(scheme.kinds)}",
            model=lease.metadata.name,
            candidates=tuple(near),
        )
    return wanted

"""The task assertions: whether what a span of a note names is present, absent or possible."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from medvllm.engine.model_runner.classification.head import (
    apply_activation,
    check_classifier,
    choose_activation,
    compute_logits,
    get_labels,
)
from medvllm.engine.model_runner.classification.marked_spans import check_places, parse_spans, read_around
from medvllm.engine.model_runner.classification.pairs import is_cross_encoder
from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.inputs import check_single_texts
from medvllm.engine.model_runner.option_checks import check_flag
from medvllm.engine.model_runner.results import Cell, Result
from medvllm.errors import RequestError
from medvllm.model_registry import Lease


@dataclass(frozen=True)
class Assertion:
    """What a model says of one span.

    Attributes:
        start: The offset of the span's first character, in Unicode code points.
        end: The offset after its last character.
        label: The likeliest label, for example "ABSENT".
        score: Its score.
        scores: The score of each label, the likeliest first.
        text: The characters of the span.
        coverage: What the model read of the text around the span.
    """

    start: int
    end: int
    label: str
    score: float
    scores: dict[str, float]
    text: str
    coverage: Coverage

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the span, for JSON."""
        return self.coverage.to_dict() | {name: value for name, value in vars(self).items() if name != "coverage"}


class AssertionResults(Result, list[list[Assertion]]):
    """For each text, what the model says of each of its spans, in their order."""

    columns: ClassVar[tuple[str, ...]] = ("text", "start", "end", "label", "score", "span")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each span; the last cell is its text."""
        for number, assertions in enumerate(self, 1):
            for found in assertions:
                yield number, found.start, found.end, found.label, found.score, found.text

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [{"assertions": [found.to_dict() for found in assertions]} for assertions in self]


def check_assertion_options(*, spans: Any = None, allow_special_tokens: bool = False) -> None:
    """Raise RequestError for an option of `assertions` that cannot be used with any model."""
    parse_spans(spans)
    check_flag("allow_special_tokens", allow_special_tokens)


def find_assertions(
    lease: Lease, texts: Iterable[str], *, spans: Any, allow_special_tokens: bool = False
) -> AssertionResults:
    """Return what the model says of each span of each text.

    The span is marked in its text with the entry's `entity_markers`. Of a text that is longer than the model, it reads
    the span with as many tokens before it as after it.

    Args:
        lease: The model in use.
        texts: The texts.
        spans: For each text, its spans: objects or records with `start` and `end`, or pairs.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens.

    Raises:
        InputTooLongError: A span is longer than the model, or a text is, and the entry forbids cutting it.
        RequestError: The model judges no marked spans, or a span or a text cannot be used.
    """
    check_classifier(lease, "assertions")
    behaviour, classes = lease.metadata.behaviour, lease.model.config.num_labels
    if classes < 2 or is_cross_encoder(lease):
        what = "is a cross-encoder" if is_cross_encoder(lease) else "has one label"
        raise RequestError(
            f"Model {lease.metadata.name!r} {what}, so it does not say whether something is present or absent.\n"
            "List the models that do with: medvllm list --task assertions",
            model=lease.metadata.name,
        )
    if len(behaviour.entity_markers) != 2:
        raise RequestError(
            f"The entry of model {lease.metadata.name!r} does not say how a span is marked in a text.\n"
            "Register it with the texts before and after a span, such as: entity_markers=['[entity] ', ' [entity]']",
            model=lease.metadata.name,
        )
    given, places = check_single_texts(lease, texts, "assertions"), parse_spans(spans)
    check_places(given, places)
    names, activation = get_labels(lease), choose_activation(lease, None)
    flat = [place for listed in places for place in listed]
    may_cut = behaviour.long_input != "error"
    read = [
        read_around(lease, given[place.text], place, may_cut=may_cut, allow_special_tokens=allow_special_tokens)
        for place in flat
    ]
    rows = apply_activation(compute_logits(lease, [window for window, _ in read]), activation).tolist()
    results = AssertionResults([] for _ in given)
    for place, (_, coverage), row in zip(flat, read, rows, strict=True):
        scores = dict(sorted(zip(names, row, strict=True), key=lambda item: -item[1]))
        label, score = next(iter(scores.items()))
        text = given[place.text][place.start : place.end]
        results[place.text].append(Assertion(place.start, place.end, label, score, scores, text, coverage))
    return results

"""The task classify: labels with scores for whole texts, or for pairs of texts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, overload

from medvllm.engine.model_runner.classification.head import (
    ACTIVATIONS,
    Activation,
    apply_activation,
    check_classifier,
    choose_activation,
    compute_logits,
    get_labels,
)
from medvllm.engine.model_runner.classification.marked_spans import check_marked
from medvllm.engine.model_runner.classification.pairs import check_folder, check_has_label, is_cross_encoder
from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.inputs import Text, check_pairs, check_texts_or_pairs
from medvllm.engine.model_runner.option_checks import check_choice, check_count, check_flag, check_long_input
from medvllm.engine.model_runner.reading.windows import LongInput, Window, split_into_windows
from medvllm.engine.model_runner.results import Cell, Result
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Combination = Literal["mean", "max"]


@dataclass(frozen=True)
class Label:
    """A label of a text.

    Attributes:
        label: Its name.
        score: Its score. With a softmax or a sigmoid, a probability from 0 to 1.
    """

    label: str
    score: float


@dataclass(frozen=True)
class Classification(Sequence[Label]):
    """The labels of one text, the likeliest first.

    Attributes:
        labels: The labels with their scores.
        coverage: What the model read of the text.
    """

    labels: tuple[Label, ...]
    coverage: Coverage

    @overload
    def __getitem__(self, index: int) -> Label: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Label]: ...
    def __getitem__(self, index: int | slice) -> Label | Sequence[Label]:
        return self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.labels[0].label

    @property
    def score(self) -> float:
        """The score of the likeliest label."""
        return self.labels[0].score

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the text, for JSON."""
        return self.coverage.to_dict() | {"labels": [vars(label) for label in self.labels]}


class ClassificationResults(Result, list[Classification]):
    """The labels of each text, the likeliest first.

    Attributes:
        classes: All labels of the model, in the order of its classes.
    """

    classes: tuple[str, ...] = ()

    columns: ClassVar[tuple[str, ...]] = ("text", "label", "score")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each label of each text."""
        for number, labels in enumerate(self, 1):
            for label in labels:
                yield number, label.label, label.score

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [labels.to_dict() for labels in self]


def check_classify_options(
    *,
    top_k: int | None = None,
    activation: Activation | None = None,
    windows: Combination | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> None:
    """Raise RequestError for an option of `classify` that cannot be used with any model."""
    if top_k is not None:
        check_count("top_k", top_k)
    if activation is not None:
        check_choice("activation", activation, ACTIVATIONS)
    if windows is not None:
        check_choice("windows", windows, get_args(Combination))
    check_long_input(long_input)
    check_flag("allow_special_tokens", allow_special_tokens)


def classify(
    lease: Lease,
    texts: Iterable[Text],
    *,
    top_k: int | None = None,
    activation: Activation | None = None,
    windows: Combination | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> ClassificationResults:
    """Return the labels of each text with their scores, the likeliest first.

    A text that is longer than the model has no answer that one pass over it would give. It is refused, unless the
    caller passes `windows` or the entry's `long_input` says otherwise. With long_input="window", scores of labels that
    do not exclude each other (sigmoid) are the highest of any window, and others are the mean of the windows.

    Args:
        lease: The model in use.
        texts: The texts, or pairs of texts if the model takes pairs.
        top_k: How many labels to return for each text; None for all.
        activation: How logits become scores. By default, the entry or the model's config decides.
        windows: How the scores of a long text are made of those of its windows: "mean", weighted by the windows'
            lengths in tokens, or "max".
        long_input: What becomes of a text longer than the model, without `windows`; None for what the entry says.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens.

    Raises:
        InputTooLongError: A text is longer than the model, and nothing says how to read it.
        RequestError: The model is no classifier of texts, it is a cross-encoder, or the texts cannot be used.
        WeightsMismatchError: The labels have no names.
    """
    check_classifier(lease, "classify")
    check_folder(lease)
    check_has_label(lease)
    given = _check_given(lease, texts, allow_special_tokens)
    names, chosen = get_labels(lease), choose_activation(lease, activation)
    _check_entailment(lease, names, given)
    policy = "window" if windows else long_input or lease.metadata.behaviour.long_input or "error"
    pieces, coverage = split_into_windows(lease.tokenizer, given, policy, allow_special_tokens=allow_special_tokens)
    scores = apply_activation(compute_logits(lease, pieces), chosen)
    combined = combine_windows(scores, pieces, len(coverage), windows or ("max" if chosen == "sigmoid" else "mean"))
    results = ClassificationResults(
        Classification(_rank(names, row)[:top_k], covered)
        for row, covered in zip(combined.tolist(), coverage, strict=True)
    )
    results.classes = tuple(names)
    return results


def combine_windows(
    scores: "NDArray[np.float32]", windows: Sequence[Window], texts: int, combination: Combination
) -> "NDArray[np.float32]":
    """Return one row of scores for each text, of shape [texts, classes], from one row for each window."""
    import numpy as np

    rows = np.array([window.text for window in windows], dtype=np.int64)
    if combination == "max":
        highest = np.full((texts, scores.shape[1]), -np.inf, dtype=np.float32)
        np.maximum.at(highest, rows, scores)
        return highest
    lengths = np.array([[len(window.input_ids)] for window in windows], dtype=np.float32).reshape(-1, 1)
    totals, means = np.zeros((texts, 1), np.float32), np.zeros((texts, scores.shape[1]), np.float32)
    np.add.at(totals, rows, lengths)
    np.add.at(means, rows, scores * (lengths / totals[rows]))
    return means


def _check_given(lease: Lease, texts: Iterable[Text], allow_special_tokens: bool) -> Sequence[Text]:
    """Return the texts or pairs as a list; the first of a pair with the prompt that a cross-encoder's folder states.

    Raises:
        RequestError: They are not what the model was trained on, or cannot be used.
    """
    behaviour = lease.metadata.behaviour
    if is_cross_encoder(lease):
        prompt = lease.scoring.prompt if lease.scoring else ""
        pairs = check_pairs(texts, behaviour.inputs or ("first", "second"))
        return [(prompt + first, second) for first, second in pairs]
    given = check_texts_or_pairs(lease, texts, "classify")
    if behaviour.entity_markers:
        check_marked(lease, given, allow_special_tokens=allow_special_tokens)
    return given


def _check_entailment(lease: Lease, names: Sequence[str], given: Sequence[Text]) -> None:
    """Raise RequestError for single texts if the labels say that the model compares a hypothesis with a premise."""
    if not lease.metadata.behaviour.inputs and any(name.casefold().startswith("entail") for name in names):
        check_pairs(given, ("premise", "hypothesis"))


def _rank(names: Sequence[str], scores: Sequence[float]) -> tuple[Label, ...]:
    """Return labels by score, the highest first; those of equal scores in the order of their classes."""
    return tuple(sorted(map(Label, names, scores), key=lambda label: -label.score))

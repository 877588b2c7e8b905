"""What a token classifier says of each word of a text, before any of it is decided."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medvllm.activations import softmax
from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.inference.compute import compute
from medvllm.engine.model_runner.inference.finite import check_finite, is_finite
from medvllm.engine.model_runner.reading.windows import LongInput, Window, split_into_windows
from medvllm.engine.model_runner.tagging.words import Word, cut_words, trim_words
from medvllm.engine.model_runner.word_list import WordList, split_by_pattern
from medvllm.errors import RequestError
from medvllm.label_schemes import LabelScheme, OutsideUnclear, read_scheme
from medvllm.lazy import lazy
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TaggedText:
    """A text, its words, and the probabilities of the labels of each piece.

    Attributes:
        text: The text. Of a list of words, the words with a blank between two of them.
        given: The words that the caller or the entry's word pattern gives; None for a text without either.
        places: The start and end of each piece in the text, in order.
        numbers: For each piece, the number of its word among those that are given, or as the tokenizer counts.
        unknown: For each piece, whether it stands for characters that the vocabulary lacks.
        probabilities: For each piece, the probability of each label. An array of shape [pieces, labels], float32.
        labels: What the labels mean.
        coverage: What the model read of the text.
    """

    text: str
    given: WordList | None
    places: Sequence[tuple[int, int]]
    numbers: Sequence[int]
    unknown: Sequence[bool]
    probabilities: "NDArray[np.float32]"
    labels: LabelScheme
    coverage: Coverage

    @lazy
    def words(self) -> list[Word]:
        """The words with their pieces. A word without pieces is one that the tokenizer dropped."""
        return self._given_words(self.given) if self.given else cut_words(self.text, self.places)

    @lazy
    def parts(self) -> list[Word]:
        """The words, cut wherever a piece begins or ends."""
        return cut_words(self.text, self.places, every_edge=True)

    @lazy
    def classes(self) -> list[int]:
        """For each piece, the class id of its likeliest label."""
        return [int(number) for number in self.probabilities.argmax(1)]

    def _given_words(self, given: WordList) -> list[Word]:
        pieces: list[list[int]] = [[] for _ in given.offsets]
        for piece, number in enumerate(self.numbers):
            pieces[number].append(piece)
        places = trim_words(self.text, given.offsets)
        return [
            Word(start, end, tuple(pieces[number]), number=number if given.is_callers else None)
            for number, (start, end) in enumerate(places)
            if start < end
        ]


def label_words(
    lease: Lease,
    texts: Sequence[str | WordList],
    *,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> Iterator[TaggedText]:
    """Yield what the model says of each text, in order. Long texts are by default read in overlapping windows.

    Args:
        lease: The model in use.
        texts: The texts, or lists of words. If the entry has a `word_pattern`, it splits the texts into words.
        long_input: What becomes of a text that is longer than the model; None for what the entry says.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens.

    Raises:
        RequestError: The model is not a token classifier, or its labels do not tell what they mean.
        LoadError: The model returns NaN or infinity.
    """
    labels = read_labels(lease)
    behaviour = lease.metadata.behaviour
    if pattern := behaviour.word_pattern:
        texts = [
            split_by_pattern(text, pattern, position) if isinstance(text, str) else text
            for position, text in enumerate(texts)
        ]
    windows, coverage = split_into_windows(
        lease.tokenizer,
        texts,
        long_input or behaviour.long_input,
        offsets=True,
        allow_special_tokens=allow_special_tokens,
    )
    marks = _find_marks(lease.tokenizer, windows)
    # Of words split beforehand, the first piece has the label, also if it is only the mark of a blank.
    windows = [
        replace(window, wanted=_find_wanted(window, frozenset() if isinstance(texts[window.text], WordList) else marks))
        for window in windows
    ]
    windows_of: list[list[Window]] = [[] for _ in texts]
    for window in windows:
        windows_of[window.text].append(window)
    found = compute(lease, "head_tokens", windows)
    logits: dict[int, NDArray[np.float32]] = {}  # of windows that are done before their turn
    for position, (text, read, covered) in enumerate(zip(texts, windows_of, coverage, strict=True)):
        parts = []
        for window in read:
            while window.input_ids and id(window) not in logits:
                done, rows = next(found)
                logits[id(done)] = rows
            if window.input_ids:
                parts.append((window, logits.pop(id(window))))
        # A label at minus infinity is an error, too: it could never be found.
        check_finite(lease, [position for _, rows in parts if not is_finite(rows)])
        yield _join(text, parts, labels, covered, lease.tokenizer.unk_token_id)
    for _ in found:  # the end of the progress bar
        pass


def read_labels(lease: Lease) -> LabelScheme:
    """Return what the labels of a token classifier mean.

    Raises:
        RequestError: The model is not a token classifier, or its labels do not tell what they mean.
    """
    model, behaviour = lease.model, lease.metadata.behaviour
    if not is_token_classifier(model):
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(model).__name__}, which finds no entities.\n"
            "List the models that do with: medvllm list --task ner",
            model=lease.metadata.name,
        )
    labels = [model.config.id2label[number] for number in range(len(model.config.id2label))]
    try:
        return read_scheme(labels, behaviour.label_scheme, behaviour.outside_label)
    except ValueError as flaw:
        is_outside_unclear = isinstance(flaw, OutsideUnclear)
        advice = "outside_label='NONE'" if is_outside_unclear else "label_scheme='BIO' (or 'BILOU', or 'IO')"
        raise RequestError(
            f"The labels of model {lease.metadata.name!r} do not tell how they mark entities: {flaw}.\n"
            f"Register it with: {advice}, or with other names for the labels: id2label=['O', 'B-DRUG', 'I-DRUG']",
            model=lease.metadata.name,
        ) from None


def is_token_classifier(model: Any) -> bool:
    """Return whether a model labels tokens."""
    return type(model).__name__.endswith("ForTokenClassification")


def _find_marks(tokenizer: Any, windows: Sequence[Window]) -> frozenset[int]:
    """Return the ids of pieces that stand for a blank and nothing else. Their offsets may contain a letter."""
    ids = list({token for window in windows for token in window.input_ids})
    names = tokenizer.convert_ids_to_tokens(ids)
    return frozenset(token for token, name in zip(ids, names, strict=True) if name and not str(name).strip("▁"))


def _find_wanted(window: Window, marks: frozenset[int]) -> list[int]:
    """Return the positions of the tokens whose labels count in this window."""
    return [
        i
        for i, word in enumerate(window.words)
        if word is not None and window.counted[i] and window.input_ids[i] not in marks
    ]


def _join(
    text: str | WordList,
    parts: "Sequence[tuple[Window, NDArray[np.float32]]]",
    labels: LabelScheme,
    coverage: Coverage,
    unknown_id: object,
) -> TaggedText:
    """Return a text with the pieces of all of its windows, each with its logits."""
    import numpy as np

    places: list[tuple[int, int]] = []
    numbers: list[int] = []
    unknown: list[bool] = []
    rows = [np.zeros((0, len(labels.labels)), dtype=np.float32)]
    for window, logits in parts:
        places += [window.offsets[i] for i in window.places]
        numbers += [word for i in window.places if (word := window.words[i]) is not None]
        unknown += [window.input_ids[i] == unknown_id for i in window.places]
        rows.append(softmax(logits))
    given = text if isinstance(text, WordList) else None
    whole = text.text if isinstance(text, WordList) else text
    return TaggedText(whole, given, places, numbers, unknown, np.concatenate(rows), labels, coverage)

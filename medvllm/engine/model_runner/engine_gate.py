"""What an engine must keep before it serves: the baseline of an entry and, in int8, what float32 decides."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.agreement_texts import TEXTS
from medvllm.heads import task_of_class
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float32]

_FORMAT = 1  # increase it when the comparison changes: what was found before is then found again
_LEAST_COSINE = 0.98  # of the vectors of one text
_NEAREST = 5  # neighbours of a text whose order must stay
_TIE = 0.05  # of the range of scores: two that are this close may change places


class EngineGate:
    """Compares the answers of an engine with those that it must keep.

    Attributes:
        content: What `find_difference` depends on besides the models.
    """

    content = (_FORMAT, _LEAST_COSINE, _NEAREST, _TIE, TEXTS)

    def find_deviation(self, lease: Lease) -> str | None:
        """Return how a model deviates from the baseline of its entry, if that is of what the engine computes."""
        if lease.model.part == "tokens" and task_of_class(type(lease.model).__name__) is not None:
            return None  # the baseline is of its head
        from medvllm.engine.model_runner.baseline import find_deviations

        found = find_deviations(lease, lease.metadata.baseline)
        return next(
            (f"it deviates from the baseline of its entry in {case}: {what}" for case, what in found.items()), None
        )

    def find_difference(self, lease: Lease, reference: Lease) -> str | None:
        """Return what a model in int8 decides in another way than one in float32 on synthetic texts; None if nothing.

        Args:
            lease: The model in int8.
            reference: The same model in float32.
        """
        find = {"tokens": _compare_vectors, "head_tokens": _compare_labels, "head_texts": _compare_classes}
        return find[lease.model.part](lease, reference)


def _compare_vectors(lease: Lease, reference: Lease) -> str | None:
    """Return how vectors differ: their directions, or which texts are the nearest ones of a text."""
    from medvllm.engine.model_runner.embedding.embed import embed
    from medvllm.engine.model_runner.embedding.similarity import compare

    given: Sequence[Any] = TEXTS
    if len(lease.metadata.behaviour.inputs) == 2:
        given = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))
    found, wanted = embed(lease, given), embed(reference, given)
    least = float((compare(found.vectors, wanted.vectors, "cosine")).diagonal().min())
    if not least >= _LEAST_COSINE:
        return f"a vector has a cosine of {least:.3f} with that of float32, less than {_LEAST_COSINE}"
    one, two = (compare(each.vectors, each.vectors, each.similarity) for each in (found, wanted))
    moved = _count_moved(_without_diagonal(one), _without_diagonal(two), _NEAREST)
    return f"{moved} of {len(TEXTS)} synthetic texts have other nearest neighbours" if moved else None


def _compare_labels(lease: Lease, reference: Lease) -> str | None:
    """Return how many tokens have another label; of a masked language model, another likeliest token."""
    is_filler = type(lease.model).__name__.endswith("ForMaskedLM")
    texts = [_hide_word(text, lease.tokenizer.mask_token) for text in TEXTS] if is_filler else TEXTS
    found, wanted = (
        [numbers.argmax(-1) for numbers in _numbers(each, "head_tokens", texts, is_filler=is_filler)]
        for each in (lease, reference)
    )
    tokens = sum(map(len, wanted))
    apart = sum(int((one != two).sum()) for one, two in zip(found, wanted, strict=True))
    return f"{apart} of {tokens} tokens of synthetic texts have another label" if apart else None


def _compare_classes(lease: Lease, reference: Lease) -> str | None:
    """Return how the classes of texts and of pairs differ; of a model with one score, their order."""
    import numpy as np

    from medvllm.engine.model_runner.classification.head import choose_activation

    for texts in (TEXTS, list(pairwise(TEXTS)), [(TEXTS[2], text) for text in TEXTS]):
        found, wanted = (np.stack(_numbers(each, "head_texts", texts)) for each in (lease, reference))
        if wanted.shape[1] == 1:
            if _count_moved(found.T, wanted.T, len(texts)):
                return "synthetic texts have another order by their scores"
            continue
        apart = found.argmax(1) != wanted.argmax(1)
        if choose_activation(lease, None) == "sigmoid":  # each label is a decision of its own
            apart |= ((found > 0) != (wanted > 0)).any(1)
        if apart.any():
            return f"{int(apart.sum())} of {len(texts)} synthetic texts have another label"
    return None


def _numbers(lease: Lease, part: Any, texts: Sequence[Any], *, is_filler: bool = False) -> "list[Numbers]":
    """Return the numbers of each window, in order."""
    from medvllm.engine.model_runner.inference.compute import compute
    from medvllm.engine.model_runner.reading.windows import split_into_windows

    policy = lease.metadata.behaviour.long_input
    windows, _ = split_into_windows(lease.tokenizer, texts, policy, allow_special_tokens=is_filler)
    found = {id(window): numbers for window, numbers in compute(lease, part, windows)}
    return [found[id(window)] for window in windows if id(window) in found]


def _hide_word(text: str, mask: object) -> str:
    words = text.split()
    words[len(words) // 2] = str(mask)
    return " ".join(words)


def _without_diagonal(scores: "Numbers") -> "Numbers":
    import numpy as np

    size = len(scores)
    others: Numbers = scores[~np.eye(size, dtype=bool)].reshape(size, size - 1)
    return others


def _count_moved(found: "Numbers", wanted: "Numbers", first: int) -> int:
    """Return in how many rows one of the highest scores changes places with a lower one that is no tie.

    Args:
        found: Scores, of shape [rows, scores].
        wanted: The scores to compare them with.
        first: How many of the highest scores of a row count.
    """
    tie = _TIE * float(wanted.max() - wanted.min())
    moved = 0
    for one, two in zip(found, wanted, strict=True):
        highest = (-two).argsort()[:first]
        moved += bool(((two[highest, None] - two > tie) & (one[highest, None] <= one)).any())
    return moved

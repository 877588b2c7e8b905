"""Which of the known names a misspelt one was likely meant for."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difflib import SequenceMatcher

_WHOLE, _PART = 0.6, 0.75  # how similar, from 0 to 1, a whole name and a part of one must be
_MARGIN, _ROUNDING = 0.01, 1e-9
_COMPARED = 50  # names for each way of comparing: difflib takes a tenth of a millisecond for one


def near_names(word: str, candidates: Iterable[str], n: int = 1) -> list[str]:
    """Return the candidates that `word` is likely a misspelling of, the most similar first.

    A candidate is compared as a whole and by its beginning; without its organisation, too, when `word` has none.
    rapidfuzz chooses those that are worth comparing, and difflib decides.

    Args:
        word: What was typed.
        candidates: The names that would have been right; one that comes twice counts once.
        n: How many to return at most.

    Returns:
        At most `n` candidates; an empty list when none is similar.
    """
    from difflib import SequenceMatcher

    typed = word.casefold()[:200]
    names = list(candidates)
    matcher = SequenceMatcher(b=typed, autojunk=False)
    found: list[tuple[float, bool, str]] = []
    for bound, name in sorted(_bounds(typed, names), reverse=True):
        if len(found) >= n and bound < -found[n - 1][0]:
            break  # nothing further down can be more similar than those that were found
        if ratio := max(_ratios(matcher, typed, name), default=0.0):
            found.append((-ratio, "/" in name, name))  # of equals, first one without an organisation
            found.sort()
    return [name for *_, name in found[:n]]


def near_keys(word: str, candidates: Iterable[str]) -> list[str]:
    """Return the candidates that `word` was likely meant for, where names are words joined by underscores.

    A key that has all the words of `word` comes before a similar one: "path" means "model_path".
    """
    names = list(candidates)
    typed = set(word.casefold().split("_"))
    return [name for name in names if typed <= set(name.casefold().split("_"))][:3] or near_names(word, names)


def did_you_mean(near: Sequence[str]) -> str:
    """Return similar names as the end of a sentence in an error, or nothing when there are none."""
    return f" Did you mean: {', '.join(map(repr, near))}?" if near else ""


def _ratios(matcher: "SequenceMatcher[str]", typed: str, name: str) -> Iterator[float]:
    for forms, cutoff in _forms(typed, [name.casefold()]):
        matcher.set_seq1(forms[0])
        if matcher.ratio() >= cutoff:
            yield matcher.ratio()


def _forms(typed: str, folded: list[str]) -> Iterator[tuple[list[str], float]]:
    """Yield what to compare of each name, with how similar it must be."""
    yield folded, _WHOLE
    if "/" not in typed:
        folded = [name.rpartition("/")[2] for name in folded]
        yield folded, _PART
    yield [name[: len(typed)] for name in folded], _PART


def _bounds(typed: str, names: Sequence[str]) -> list[tuple[float, str]]:
    """Return the names that are most likely similar, each with a number that its similarity does not exceed.

    difflib matches no more characters than the longest common subsequence has, which rapidfuzz finds much faster.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import Indel

    bounds: dict[str, float] = {}
    for forms, cutoff in _forms(typed, list(map(str.casefold, names))):
        similar = process.extract(
            typed, forms, scorer=Indel.normalized_similarity, score_cutoff=cutoff - _MARGIN, limit=_COMPARED
        )
        for _, bound, index in similar:
            bounds[names[index]] = max(bound, bounds.get(names[index], 0.0))
    return [(bound + _ROUNDING, name) for name, bound in bounds.items()]

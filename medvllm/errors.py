"""Every error raised on purpose.

MedVLLMError(Exception)
  SettingError(ValueError)   ModelNameError(ValueError)   MissingDependencyError(ImportError)
  ModelNotFoundError(KeyError)   ModelExistsError(ValueError)   CatalogError > MigrationError
  SourceError(OSError) > SnapshotNotFoundError, IncompleteSnapshotError, GatedModelError, HubUnreachableError,
                         DigestMismatchError
  OutputError(OSError)
  LoadError(RuntimeError) > WeightsMismatchError, UnsafeWeightsError, BudgetError, DeviceMemoryError
  RequestError(ValueError) > InputTooLongError

A message says what happened, to which thing, what was found instead, and ends with a line to paste. It never
holds the text of a note, a prompt or a token.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

__all__ = [
    "BudgetError",
    "CatalogError",
    "DeviceMemoryError",
    "DigestMismatchError",
    "GatedModelError",
    "HubUnreachableError",
    "IncompleteSnapshotError",
    "InputTooLongError",
    "LoadError",
    "MedVLLMError",
    "MigrationError",
    "MissingDependencyError",
    "ModelExistsError",
    "ModelNameError",
    "ModelNotFoundError",
    "OutputError",
    "RequestError",
    "SettingError",
    "SnapshotNotFoundError",
    "SourceError",
    "UnsafeWeightsError",
    "WeightsMismatchError",
    "nearest",
    "offer",
]


class MedVLLMError(Exception):
    """The base: a message, then facts as keywords that become attributes.

    No subclass adds ``__init__``: pickle rebuilds an exception from its message and its ``__dict__``.
    """

    def __init__(self, message: str = "", **facts: object) -> None:
        super().__init__(message)
        self.__dict__.update(facts)

    def __str__(self) -> str:
        # KeyError's own would print the message in quotes.
        return str(self.args[0]) if self.args else ""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # the facts: what they are depends on the error


class SettingError(MedVLLMError, ValueError):
    """A MEDVLLM_* variable has a value that cannot be used."""


class ModelNameError(MedVLLMError, ValueError):
    """What was typed cannot be a model's name."""


class MissingDependencyError(MedVLLMError, ImportError):
    """A library or class that this call needs cannot be imported."""


class ModelNotFoundError(MedVLLMError, KeyError):
    """No entry, folder or repository answers to the name."""


class ModelExistsError(MedVLLMError, ValueError):
    """The name to register is taken."""


class CatalogError(MedVLLMError):
    """The catalogue, or an entry in it, is not usable."""


class MigrationError(CatalogError):
    """The catalogue's database has another schema than this program reads and writes."""


class SourceError(MedVLLMError, OSError):
    """A model's files could not be had."""


class SnapshotNotFoundError(SourceError):
    """The folder, or the repository's revision, is not there."""


class IncompleteSnapshotError(SourceError):
    """A snapshot lacks files, or a file lacks bytes."""


class GatedModelError(SourceError):
    """The repository asks for an agreement or a token first."""


class HubUnreachableError(SourceError):
    """The Hub does not answer, or the library is set to offline."""


class DigestMismatchError(SourceError):
    """A file is not the one that was listed, locked or bundled."""


class OutputError(MedVLLMError, OSError):
    """A result cannot be written to where it was asked for."""


class LoadError(MedVLLMError, RuntimeError):
    """The files are there, but no sound model came of them."""


class WeightsMismatchError(LoadError):
    """The checkpoint does not fill the model: missing or misshapen weights, a nameless label set."""


class UnsafeWeightsError(LoadError):
    """Loading would run code: a pickle, or a repository's own modules."""


class BudgetError(LoadError):
    """The budget has no room for the model; `plan` says why."""


class DeviceMemoryError(LoadError):
    """The device has no room left for the model."""


class RequestError(MedVLLMError, ValueError):
    """An argument or a piece of input is not usable."""


class InputTooLongError(RequestError):
    """The input is longer than the task can take, and the task may not cut it."""


def nearest(word: str, candidates: Iterable[str], n: int = 1) -> list[str]:
    """Return at most `n` candidates that `word` is likely a misspelling of, the nearest first.

    The beginning of a long candidate, or what follows its organisation, is compared as well.
    """
    typed = word.casefold()[:200]
    matcher = difflib.SequenceMatcher(b=typed, autojunk=False)
    scored: list[tuple[float, bool, str]] = []
    for candidate in candidates:
        folded = candidate.casefold()
        tail = folded.rpartition("/")[2]
        ratios = []
        for form, cutoff in {tail: 0.75, tail[: len(typed)]: 0.75, folded: 0.6}.items():
            matcher.set_seq1(form)
            if matcher.real_quick_ratio() >= cutoff and matcher.quick_ratio() >= cutoff and matcher.ratio() >= cutoff:
                ratios.append(matcher.ratio())
        if ratios:
            scored.append((-max(ratios), "/" in candidate, candidate))  # of equals, what needs no organisation
    return [candidate for *_, candidate in sorted(scored)[:n]]


def offer(near: Sequence[str]) -> str:
    """Return near names as a message ends with them, or nothing when there are none."""
    return f" Nearest: {', '.join(map(repr, near))}." if near else ""

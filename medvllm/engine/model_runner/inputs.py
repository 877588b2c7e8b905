"""What a caller gives: texts, or pairs where the entry says so."""

from collections.abc import Iterable, Sequence
from typing import Any

from medvllm.errors import InputTooLongError, RequestError
from medvllm.model_registry import Lease

MOST_CHARACTERS = 4_000_000  # of one text: a tokenizer that wants more memory than there is ends the process
Text = str | tuple[str, str] | list[str]  # what one result is for; a list is a pair as JSON has it


def plain_texts(lease: Lease, texts: Iterable[Text], task: str) -> list[str]:
    """Return the texts for a task that gives the model one each; RequestError: its entry says that it takes more."""
    inputs = lease.metadata.behaviour.inputs
    if len(inputs) > 1:
        raise RequestError(
            f"Model {lease.metadata.name!r} takes {' and '.join(inputs)}, and task {task!r} gives it one text.\n"
            "If it takes one text, register it with: inputs=['text']",
            model=lease.metadata.name,
        )
    return check_texts(texts)


def check_texts(texts: Iterable[Any]) -> list[str]:
    """Return the texts as a list, or raise RequestError that names the position, never the text."""
    given = listed(texts)
    for position, text in enumerate(given, 1):
        if _is_pair(text):
            raise RequestError(
                f"Text {position} is a pair, and the model takes one text.\n"
                "If it was trained on pairs, register it with: inputs=['title', 'abstract']"
            )
        _check_text(text, position)
    return given


def check_pairs(pairs: Iterable[Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of texts as a list; `names` are what the entry calls the two, in their order.

    RequestError names the position of what is no pair, never the text.
    """
    given = listed(pairs)
    for position, pair in enumerate(given, 1):
        if not _is_pair(pair):
            raise RequestError(
                f"Text {position} must be a pair: the model takes {' and '.join(names)}.\n"
                f"Write it as: [[{', '.join(names)}]]"
            )
        for text in pair:
            _check_text(text, position)
    return [(first, second) for first, second in given]


def listed(texts: Iterable[Any]) -> list[Any]:
    """Return the texts as a list; RequestError: one text alone, which would be taken for its letters."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        kind = "one text" if isinstance(texts, str) else type(texts).__name__
        raise RequestError(f"Texts must be a list of texts, not {kind}.\nWrite it as: [text]")
    return list(texts)


def _is_pair(item: object) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2


def _check_text(text: object, position: int) -> None:
    if not isinstance(text, str):
        raise RequestError(f"Text {position} must be text, not {type(text).__name__}.")
    if len(text) > MOST_CHARACTERS:
        raise InputTooLongError(
            f"Text {position} has {len(text):,} characters, and at most {MOST_CHARACTERS:,} are read at once: "
            "each takes some 200 bytes of memory.\nGive its parts as texts of their own, such as its pages.",
            limit=MOST_CHARACTERS,
            position=position - 1,
        )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError(f"Text {position} is not Unicode: bytes of another encoding were read into it.")

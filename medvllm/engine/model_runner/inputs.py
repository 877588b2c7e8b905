"""Checks of what a caller passes: texts, or pairs of texts if the entry asks for pairs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medvllm.engine.model_runner.word_list import WordList, join_words
from medvllm.errors import InputTooLongError, RequestError
from medvllm.model_registry import Lease
from medvllm.spelling import has_lone_surrogate

MAX_CHARACTERS = 4_000_000  # of one text; a tokenizer that runs out of memory ends the process
Text = str | tuple[str, str] | list[str]  # one input; a pair from JSON is a list


def check_single_texts(lease: Lease, texts: Iterable[Text], task: str) -> list[str]:
    """Return the texts as a list, for a task that gives the model one text at a time.

    Raises:
        RequestError: The model takes pairs, or a text cannot be used.
    """
    _check_takes_texts(lease, task)
    return check_texts(texts)


def check_texts_or_words(lease: Lease, texts: Iterable[Any], task: str) -> list[str | WordList]:
    """Return the texts, and lists of words, for a task that gives the model one of them at a time.

    Raises:
        RequestError: The model takes pairs, or a text or word cannot be used.
    """
    given = to_list(texts)
    _check_takes_texts(lease, task)
    for position, item in enumerate(given, 1):
        if isinstance(item, (list, tuple)):
            if odd := next((number for number, word in enumerate(item, 1) if not isinstance(word, str)), None):
                raise RequestError(
                    f"Text {position} is a list of words, of which word {odd} must be text, not "
                    f"{type(item[odd - 1]).__name__}."
                )
            # The first piece of a word decides for all of it. Of a sentence, the rest would go unread without a word.
            if long := next((number for number, word in enumerate(item, 1) if len(word.split()) > 1), None):
                raise RequestError(
                    f"Text {position} is a list of words, but its item {long} has white space in it, so it is not one "
                    "word.\nPass texts as they are, without a list around them: runner.entities(texts)"
                )
            check_text(" ".join(item), position)
        else:
            check_text(item, position)
    return [item if isinstance(item, str) else join_words(item) for item in given]


def check_texts_or_pairs(lease: Lease, texts: Iterable[Text], task: str) -> Sequence[Text]:
    """Return the texts or pairs as a list, for a task that takes what the model was trained on.

    If the entry does not state its `inputs`, the caller's first item decides: all are pairs, or none.

    Raises:
        RequestError: The items are not what the model takes, or cannot be used.
    """
    inputs = lease.metadata.behaviour.inputs
    if len(inputs) == 2:
        return check_pairs(texts, inputs)
    given = to_list(texts)
    if not inputs and given and _is_pair(given[0]):
        return check_pairs(given, ("first", "second"))
    return check_single_texts(lease, given, task)


def check_texts(texts: Iterable[Any]) -> list[str]:
    """Return the texts as a list. RequestError names the position of a bad text, never the text."""
    given = to_list(texts)
    for position, text in enumerate(given, 1):
        if _is_pair(text):
            raise RequestError(
                f"Text {position} is a pair, but the model takes single texts.\n"
                "If it was trained on pairs, register it with: inputs=['title', 'abstract']"
            )
        check_text(text, position)
    return given


def check_pairs(pairs: Iterable[Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of texts as a list. `names` are the two inputs of the entry, for the message.

    RequestError names the position of a bad pair, never its texts.
    """
    given = to_list(pairs)
    for position, pair in enumerate(given, 1):
        if not _is_pair(pair):
            raise RequestError(
                f"Text {position} must be a pair: the model takes {' and '.join(names)}.\n"
                f"Write it as: [[{', '.join(names)}]]"
            )
        for text in pair:
            check_text(text, position)
    return [(first, second) for first, second in given]


def check_query(query: object) -> None:
    """Raise RequestError unless a query is one text that can be used."""
    if not isinstance(query, str):
        what = "is missing" if query is None else f"must be one text, not {type(query).__name__}"
        raise RequestError(f"The query {what}.\nPass it as: query='what to look for'", option="query")
    check_option_text(query, "The query", "query")


def to_list(texts: Iterable[Any]) -> list[Any]:
    """Return the texts as a list.

    Raises:
        RequestError: Its items would be something else: the letters of a text, the names of the columns of a table, or
            the texts of a set, whose order nobody knows.
    """
    is_table = hasattr(texts, "columns") and hasattr(texts, "iloc")  # a pandas DataFrame
    if isinstance(texts, (str, bytes, Mapping, set, frozenset)) or not isinstance(texts, Iterable) or is_table:
        kind = "one text" if isinstance(texts, str) else type(texts).__name__
        raise RequestError(f"Texts must be a list of texts, not {kind}.\nWrite it as: [text]")
    return list(texts)


def _check_takes_texts(lease: Lease, task: str) -> None:
    """Raise RequestError if the entry says that the model takes pairs."""
    inputs = lease.metadata.behaviour.inputs
    if len(inputs) > 1:
        raise RequestError(
            f"Model {lease.metadata.name!r} takes pairs of {' and '.join(inputs)}, but task {task!r} takes single "
            "texts.\nIf the model takes single texts, register it with: inputs=['text']",
            model=lease.metadata.name,
        )


def _is_pair(item: object) -> bool:
    return isinstance(item, (tuple, list)) and len(item) == 2


def check_text(text: object, position: int) -> None:
    """Raise RequestError if a text cannot be used. `position` is its place from 1."""
    _check(text, f"Text {position}", position=position - 1)


def check_option_text(text: object, called: str, option: str) -> None:
    """Raise RequestError if a text of an option cannot be used. `called` is its name, such as "The query"."""
    _check(text, called, option=option)


def _check(text: object, called: str, **about: Any) -> None:
    if not isinstance(text, str):
        raise RequestError(f"{called} must be text, not {type(text).__name__}.", **about)
    if len(text) > MAX_CHARACTERS:
        raise InputTooLongError(
            f"{called} has {len(text):,} characters; the maximum is {MAX_CHARACTERS:,}, as each takes about "
            "200 bytes of memory.\nSplit it into several texts, for example one for each page.",
            limit=MAX_CHARACTERS,
            **about,
        )
    if has_lone_surrogate(text):
        raise RequestError(
            f"{called} is not valid Unicode: it was decoded with the wrong encoding.\n"
            "Decode it with its own encoding, for example: open(file, encoding='latin-1')",
            **about,
        )

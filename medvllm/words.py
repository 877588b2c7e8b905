"""Other words for tasks and label schemes, and the one word that medvllm uses for each."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from medvllm.errors import RequestError
from medvllm.near_names import did_you_mean, near_names

TASKS = ("embed", "fill-mask", "ner", "deid", "classify", "assertions", "rerank", "generate")

# What ModelRunner does with the model of another task.
_DONE_WITH = {"redact": "deid"}

# As transformers' pipelines, other tools and people call them. Case, blanks and signs do not matter.
_TASKS_ELSEWHERE = {
    "embed": (
        *("embedding", "embeddings", "text-embedding", "text-embeddings", "sentence-embedding", "sentence-embeddings"),
        *("feature-extraction", "sentence-similarity"),
    ),
    "fill-mask": ("mask-filling", "masked-lm", "masked-language-modeling", "masked-language-modelling", "mlm"),
    "ner": ("token-classification", "named-entity-recognition", "entity-recognition", "entity-extraction", "entities"),
    "deid": ("de-identification", "de-identify", "de-identifier"),
    "redact": ("redaction", "redacting"),
    "classify": (
        *("classification", "classifier", "text-classification", "sequence-classification", "sentiment-analysis"),
        *("nli", "natural-language-inference"),
    ),
    "assertions": ("assertion", "assertion-detection", "negation", "negation-detection"),
    "rerank": ("reranking", "reranker", "rank", "ranking", "text-ranking", "cross-encoder"),
    "generate": (
        *("generation", "generating", "text-generation", "text2text-generation", "text2text"),
        *("causal-lm", "causal-language-modeling", "causal-language-modelling"),
    ),
}
_SCHEMES = ("BIO", "BILOU", "IO")
# IOB1 begins an entity with I, and with B only behind another of its type: as BIO is read, in which a B may be missing.
_SCHEMES_ELSEWHERE = {
    **dict.fromkeys(("BIOES", "IOBES", "BIOLU", "BIOUL", "BILUO", "BMES", "BMESO", "BMEWO", "BMEOW"), "BILOU"),
    **dict.fromkeys(("IOB", "IOB1", "IOB2"), "BIO"),
}


def usual_task(word: str) -> str:
    """Return medvllm's word for a task. A word that is not known is returned as it is."""
    return _USUAL.get(_fold(word), word)


def usual_entry_task(word: str) -> str:
    """Return medvllm's word for a task that an entry states: a model for redaction is a de-identifier."""
    task = usual_task(word)
    return _DONE_WITH.get(task, task)


def known_task(word: str, others: Iterable[str] = ()) -> str:
    """Return medvllm's word for a task of an entry, or a word of the caller's own.

    Args:
        word: The task.
        others: Further words that are in use.

    Raises:
        RequestError: The word is similar to a task or to one of `others`, so it is probably misspelt.
    """
    task = usual_entry_task(word)
    if task in TASKS or task in others:
        return task
    if _near(task, others):
        raise unknown_task(word, others)
    return task


def unknown_task(word: str, others: Iterable[str] = ()) -> RequestError:
    """Return the error for a word that is neither a task nor one of `others`."""
    near = _near(word, others)
    return RequestError(
        f"Task {word[:80]!r} does not exist.{did_you_mean([usual_entry_task(each) for each in near])}\n"
        f"Use one of: {', '.join(TASKS)}"
        f"{'. A word of your own must not be similar to one of these.' if near else ''}",
        task=word,
        candidates=tuple(near),
    )


def _near(word: str, others: Iterable[str]) -> list[str]:
    return near_names(word, [*TASKS, *chain.from_iterable(_TASKS_ELSEWHERE.values()), *others])


def _fold(word: str) -> str:
    """Return the letters and digits of a word, in folded case."""
    return "".join(filter(str.isalnum, word.casefold()))


_USUAL = {_fold(word): task for task, words in _TASKS_ELSEWHERE.items() for word in (task, *words)}


def normalize_value(model: str, keyword: str, value: Any) -> Any:
    """Return a fact's value in medvllm's own words.

    Raises:
        RequestError: A task is misspelt, or labels do not number every class.
    """
    if keyword == "task" and isinstance(value, str):
        return known_task(value)
    if keyword == "label_scheme" and isinstance(value, str):
        scheme = _SCHEMES_ELSEWHERE.get(value.upper(), value.upper())
        return scheme if scheme in _SCHEMES else value
    if keyword == "id2label" and isinstance(value, Mapping):
        return _labels(model, value)
    return value


def _labels(model: str, labels: Mapping[Any, Any]) -> list[Any]:
    """Return the labels of a mapping such as config.json has it, in the order of their ids."""
    by_id = {int(key): label for key, label in labels.items() if str(key).isdecimal()}
    missing = next((number for number in range(len(labels)) if number not in by_id), None)
    if missing is not None or len(by_id) != len(labels):
        raise RequestError(
            f"Keyword 'id2label' of model {model!r} must have a label for every class from 0 to {len(labels) - 1}, "
            f"but {'has other keys' if missing is None else f'{missing} is missing'}.",
            keyword="id2label",
        )
    return [by_id[number] for number in range(len(by_id))]

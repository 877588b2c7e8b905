"""Other words for tasks and label schemes, and the one word that medvllm uses for each."""

from collections.abc import Iterable, Mapping
from typing import Any

from medvllm.errors import RequestError
from medvllm.near_names import did_you_mean, near_names

TASKS = ("embed", "fill-mask", "ner", "deid", "classify", "assertions", "rerank", "generate")

# As transformers' pipelines and other tools call them.
_TASKS_ELSEWHERE = {
    "token-classification": "ner",
    "named-entity-recognition": "ner",
    "de-identification": "deid",
    "deidentification": "deid",
    "feature-extraction": "embed",
    "sentence-similarity": "embed",
    "embedding": "embed",
    "embeddings": "embed",
    "masked-lm": "fill-mask",
    "text-classification": "classify",
    "sequence-classification": "classify",
    "sentiment-analysis": "classify",
    "classification": "classify",
    "assertion": "assertions",
    "assertion-detection": "assertions",
    "negation": "assertions",
    "negation-detection": "assertions",
    "text-ranking": "rerank",
    "reranking": "rerank",
    "re-rank": "rerank",
    "rank": "rerank",
    "text-generation": "generate",
    "text2text-generation": "generate",
    "generation": "generate",
}
_SCHEMES = ("BIO", "BILOU", "IO")
# IOB1 begins an entity with I, and with B only behind another of its type: as BIO is read, in which a B may be missing.
_SCHEMES_ELSEWHERE = {
    **dict.fromkeys(("BIOES", "IOBES", "BIOLU", "BIOUL", "BILUO", "BMES", "BMESO", "BMEWO", "BMEOW"), "BILOU"),
    **dict.fromkeys(("IOB", "IOB1", "IOB2"), "BIO"),
}


def usual_task(word: str) -> str:
    """Return medvllm's word for a task. A word that is not known is returned as it is."""
    folded = word.strip().casefold().replace("_", "-").replace(" ", "-")
    return folded if folded in TASKS else _TASKS_ELSEWHERE.get(folded, word)


def known_task(word: str, others: Iterable[str] = ()) -> str:
    """Return medvllm's word for a task, or a word of the caller's own.

    Args:
        word: The task.
        others: Further words that are in use.

    Raises:
        RequestError: The word is similar to a task or to one of `others`, so it is probably misspelt.
    """
    task = usual_task(word)
    if task in TASKS or task in others:
        return task
    if _near(task, others):
        raise unknown_task(word, others)
    return task


def unknown_task(word: str, others: Iterable[str] = ()) -> RequestError:
    """Return the error for a word that is neither a task nor one of `others`."""
    near = _near(usual_task(word), others)
    return RequestError(
        f"Task {word[:80]!r} does not exist.{did_you_mean([usual_task(each) for each in near])}\n"
        f"Use one of: {', '.join(TASKS)}"
        f"{'. A word of your own must not be similar to one of these.' if near else ''}",
        task=word,
        candidates=tuple(near),
    )


def _near(word: str, others: Iterable[str]) -> list[str]:
    return near_names(word, [*TASKS, *_TASKS_ELSEWHERE, *others])


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

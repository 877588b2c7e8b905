"""The casing of a tokenizer: how it treats capitals and accents, and whether that agrees with the entry."""

from collections.abc import Collection
from typing import Any

from medvllm.errors import LoadError
from medvllm.loading.tokenizer.vocabulary import lacks_capitals
from medvllm.metadata import ModelMetadata

_CAPITALS, _SMALL = "ALS", "als"
_ACCENTED, _PLAIN = "é", "e"


def lowercases(tokenizer: Any) -> bool:
    """Return whether a tokenizer lowercases."""
    return _equates(tokenizer, _CAPITALS, _SMALL)


def check_casing(metadata: ModelMetadata, words: Collection[str], tokenizer: Any) -> None:
    """Check that a tokenizer treats capitals and accents as the entry says, and has the vocabulary for it.

    Raises:
        LoadError: The tokenizer contradicts the entry, or a fact of the entry has no effect on it.
    """
    behaviour = metadata.behaviour
    if behaviour.do_lower_case is False and lacks_capitals(words):
        raise LoadError(
            f"The vocabulary of model {metadata.name!r} has no capital letters, but the entry says that it is cased.\n"
            "Every capitalized word would be unknown. Register it with: do_lower_case=True",
            model=metadata.name,
        )
    for fact, stated, does, what in (
        ("do_lower_case", behaviour.do_lower_case, lowercases(tokenizer), "lowercases"),
        ("strip_accents", behaviour.strip_accents, _equates(tokenizer, _ACCENTED, _PLAIN), "strips accents"),
    ):
        if stated is True and not does:
            raise LoadError(
                f"The entry of {metadata.name!r} says {fact}=True, which has no effect: "
                f"its {type(tokenizer).__name__} never {what}.\n"
                f"Register it without {fact}, or with {fact}=False",
                model=metadata.name,
            )
        if stated is False and does:
            raise LoadError(
                f"The tokenizer of model {metadata.name!r} {what}, but the entry says {fact}=False.\n"
                f"Register it without {fact}, or with {fact}=True",
                model=metadata.name,
            )


def _equates(tokenizer: Any, one: str, other: str) -> bool:
    """Return whether a tokenizer encodes two texts alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.pre_tokenizer is not None:
        normalizer = backend.normalizer
        return normalizer is not None and normalizer.normalize_str(one) == normalizer.normalize_str(other)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (one, other)]
    return bool(ids[0] == ids[1] and set(ids[0]) - {tokenizer.unk_token_id})

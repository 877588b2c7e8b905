"""Casing of a tokenizer: what it makes of capitals and accents, and whether that is what the entry says."""

from collections.abc import Collection
from typing import Any

from medvllm.errors import LoadError
from medvllm.loading.tokenizer.vocabulary import lacks_capitals
from medvllm.metadata import ModelMetadata

_CAPITALS, _SMALL = "ALS", "als"
_ACCENTED, _PLAIN = "é", "e"


def lowercases(tokenizer: Any) -> bool:
    """Return whether capitals come out as small letters."""
    return _equates(tokenizer, _CAPITALS, _SMALL)


def check_casing(metadata: ModelMetadata, words: Collection[str], tokenizer: Any) -> None:
    """Raise LoadError unless a tokenizer does with capitals and accents what the entry says, and has the words for it.

    An entry's word that has no effect is an error, as one that is broken is.
    """
    behaviour = metadata.behaviour
    if behaviour.do_lower_case is False and lacks_capitals(words):
        raise LoadError(
            f"The vocabulary of model {metadata.name!r} has no capital letter, and the entry says that it is cased.\n"
            "Every capitalised word would be unknown. Register it with: do_lower_case=True",
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
                f"Register it without, or with what it does: {fact}=False",
                model=metadata.name,
            )
        if stated is False and does:
            raise LoadError(
                f"The tokenizer of model {metadata.name!r} {what}, and the entry says that it must not.\n"
                f"Register it without, or with what it does: {fact}=True",
                model=metadata.name,
            )


def _equates(tokenizer: Any, one: str, other: str) -> bool:
    """Return whether two texts are the same to a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and backend.pre_tokenizer is not None:
        normalizer = backend.normalizer
        return normalizer is not None and normalizer.normalize_str(one) == normalizer.normalize_str(other)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (one, other)]
    return bool(ids[0] == ids[1] and set(ids[0]) - {tokenizer.unk_token_id})

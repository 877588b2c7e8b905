"""The vocabulary of a tokenizer: it is not empty, and the model has an embedding for each token."""

from collections.abc import Collection
from typing import Any

from medvllm.errors import WeightsMismatchError
from medvllm.loading.positions import text_config
from medvllm.metadata import ModelMetadata
from medvllm.sources.snapshot import Snapshot

_BERT_SPECIAL = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}  # also if a tokenizer does not declare them


def words(metadata: ModelMetadata, snapshot: Snapshot, tokenizer: Any, vocabulary: dict[str, int]) -> set[str]:
    """Return the tokens of a vocabulary without the special ones. Raises WeightsMismatchError if there are none."""
    found: set[str] = vocabulary.keys() - set(tokenizer.all_special_tokens)
    if not found:
        raise WeightsMismatchError(
            f"The tokenizer of model {metadata.name!r} has no vocabulary: every word would be unknown.\n"
            f"{snapshot.path} needs a vocab.txt or tokenizer.json.",
            model=metadata.name,
            path=str(snapshot.path),
        )
    return found - _BERT_SPECIAL


def check_ids(metadata: ModelMetadata, config: Any, tokenizer: Any, vocabulary: dict[str, int]) -> None:
    """Raise WeightsMismatchError if a token's id is beyond the embeddings: a text with it could not be encoded.

    The id of the pad token may be beyond them, because padding is masked.
    """
    rows = getattr(text_config(config), "vocab_size", None)
    if type(rows) is not int or rows < 1:
        return
    beyond = sorted((i, token) for token, i in vocabulary.items() if i >= rows and token != tokenizer.pad_token)
    if beyond:
        some = ", ".join(f"{token!r} is {i}" for i, token in beyond[:3])
        more = f" and {len(beyond) - 3:,} more" if len(beyond) > 3 else ""
        raise WeightsMismatchError(
            f"The tokenizer of model {metadata.name!r} has ids up to {beyond[-1][0]:,}, but its config has only "
            f"{rows:,} embeddings (vocab_size), for ids up to {rows - 1:,}: {some}{more}.\n"
            "The tokenizer and the weights do not belong together. Fetch both from the same commit.",
            model=metadata.name,
        )


def is_cased(found: Collection[str]) -> bool:
    """Return whether a vocabulary was built from cased text: then at least one token in a hundred has a capital."""
    return sum(word != word.lower() for word in found) > len(found) / 100


def lacks_capitals(found: Collection[str]) -> bool:
    """Return whether a vocabulary has letters, but no capital letter."""
    return any(word != word.upper() for word in found) and not any(word != word.lower() for word in found)

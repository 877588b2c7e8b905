"""The token ids for which a model has embeddings."""

from collections.abc import Sequence
from typing import Any

from medvllm.engine.model_runner.reading.windows import Window
from medvllm.errors import RequestError
from medvllm.model_registry import Lease


def check_ids(lease: Lease, module: Any, batch: Sequence[Window]) -> None:
    """Raise RequestError if a text contains a token without an embedding."""
    known = _count_embeddings(module)
    for window in batch if known else ():
        if (highest := max(window.input_ids)) >= known:
            # Name only the padding token: any other token is a piece of the text, which no message contains.
            is_padding = highest == lease.tokenizer.pad_token_id
            advice = (
                f"The text contains {lease.tokenizer.pad_token!r}, the padding token. Remove it."
                if is_padding
                else "The tokenizer does not fit the weights. Take both from the same commit."
            )
            raise RequestError(
                f"Text {window.text + 1} contains token {highest}, but model {lease.metadata.name!r} has only "
                f"{known:,} embeddings.\n{advice}",
                model=lease.metadata.name,
                position=window.text,
            )


def find_padding_id(lease: Lease, module: Any) -> int:
    """Return the tokenizer's padding id, or 0 if it has no embedding. The mask hides padding in any case."""
    padding, known = lease.tokenizer.pad_token_id, _count_embeddings(module)
    return padding if isinstance(padding, int) and padding < (known or padding + 1) else 0


def _count_embeddings(module: Any) -> int:
    """Return the number of token embeddings of a model, or 0 if it does not tell."""
    try:
        known = getattr(module.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # a custom model class may lack the method
        return 0
    return known if isinstance(known, int) else 0

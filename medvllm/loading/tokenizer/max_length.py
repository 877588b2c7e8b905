"""Length of the texts that a model reads at once, in tokens, special tokens included."""

import logging
from typing import Any

from medvllm.errors import LoadError
from medvllm.loading.positions import UNLIMITED, find_positions
from medvllm.metadata import ModelMetadata

logger = logging.getLogger(__name__)

_SAFE = 512  # what encoders of text were trained for, where nothing says another


def find_max_length(metadata: ModelMetadata, config: Any, tokenizer: Any) -> int:
    """Return the entry's length, else the smaller of the tokenizer's own and the model's positions.

    The entry's is at most what the model has positions for. LoadError: the tokenizer's is no number of tokens, or there
    is no room for a token between the special ones.
    """
    stated, model = metadata.behaviour.max_length, find_positions(config)
    if stated is not None:
        most = model.count if model.is_firm and model.count is not None else stated
        found = min(stated, most)
        if found < stated:
            logger.warning(
                "%r reads at most %d tokens at once, not %d as its max_length says", metadata.name, most, stated
            )
    else:
        known = [count for count in (_own(metadata, tokenizer), model.count) if count is not None]
        found = min(known, default=_SAFE)
        if not known:
            logger.warning(
                "nothing says how many tokens %r reads at once: %d are assumed. Say another: register(…, max_length=…)",
                *(metadata.name, _SAFE),
            )
    special = tokenizer.num_special_tokens_to_add()
    if found <= special:
        raise LoadError(
            f"Model {metadata.name!r} reads {found} tokens at once, and {special} of them are special: none is left.\n"
            "Register it with more: max_length=…",
            model=metadata.name,
        )
    return found


def _own(metadata: ModelMetadata, tokenizer: Any) -> int | None:
    """Return the tokenizer's own length, or None where it says that there is none: -1, 0, 1e30, null."""
    stated = tokenizer.model_max_length
    try:
        number = float(stated) if isinstance(stated, str) else stated
    except ValueError:
        number = None
    if stated is None or number in (-1, 0):
        return None
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        if number >= UNLIMITED:
            return None
        if number > 0 and number == int(number):
            return int(number)
    raise LoadError(
        f"The tokenizer of model {metadata.name!r} has the model_max_length {str(stated)[:80]!r}, "
        "which is no number of tokens.\nSay one: register(…, max_length=512)",
        model=metadata.name,
    )

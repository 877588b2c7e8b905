"""The maximum length of a model's input, in tokens, including special tokens."""

import logging
from typing import Any

from medvllm.errors import LoadError
from medvllm.loading.positions import UNLIMITED, find_positions
from medvllm.metadata import ModelMetadata

logger = logging.getLogger(__name__)

_DEFAULT = 512  # the length that most text encoders were trained for


def find_max_length(metadata: ModelMetadata, config: Any, tokenizer: Any) -> int:
    """Return the entry's maximum length, or the smaller of the tokenizer's own and the model's positions.

    The entry's length is reduced to the number of positions that the model has.

    Raises:
        LoadError: The tokenizer's length is not a number, or there is no room besides the special tokens.
    """
    stated, model = metadata.behaviour.max_length, find_positions(config)
    if stated is not None:
        most = model.count if model.is_firm and model.count is not None else stated
        found = min(stated, most)
        if found < stated:
            logger.warning(
                "%r reads at most %d tokens at once, fewer than its max_length of %d", metadata.name, most, stated
            )
    else:
        known = [count for count in (_own(metadata, tokenizer), model.count) if count is not None]
        found = min(known, default=_DEFAULT)
        if not known:
            logger.warning(
                "the maximum length of %r is not known; %d tokens are assumed. Register it with: max_length=…",
                *(metadata.name, _DEFAULT),
            )
    special = tokenizer.num_special_tokens_to_add()
    if found <= special:
        raise LoadError(
            f"Model {metadata.name!r} reads {found} tokens at once, and {special} of them are special tokens: "
            "none is left for the text.\nRegister it with a larger max_length.",
            model=metadata.name,
        )
    return found


def _own(metadata: ModelMetadata, tokenizer: Any) -> int | None:
    """Return the tokenizer's own length; None for values that mean no limit: -1, 0, 1e30, null."""
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
        "which is not a number of tokens.\nRegister it with the right one, such as: max_length=512",
        model=metadata.name,
    )

"""Whether a model reads a text in one direction: what it makes of a token never depends on the tokens after it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medvllm.rounding import PROBE, differs_by_rounding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOKENS = 24


def tell_causality(config: Any) -> bool | None:
    """Return whether a config says that its model is a decoder, or not; None if it does not tell.

    The config seldom tells: BERT and GPT-NeoX, for example, have the same fields with the same values.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING as masked

    if any(getattr(config, flag, False) for flag in ("is_encoder_decoder", "is_decoder", "causal")):
        return True
    return False if type(config) in masked else None  # a gap is filled from both sides


def try_causality(compute: "Callable[[list[int]], NDArray[np.float32]]", tokenizer: Any, dtype: object) -> bool:
    """Return whether what a model makes of the beginning of a text stays the same with another ending.

    Args:
        compute: Returns the numbers of each token of a text, of shape [tokens, size].
        tokenizer: The tokenizer.
        dtype: The dtype that the model computes in.
    """
    plain = [number for number in range(len(tokenizer)) if number not in tokenizer.all_special_ids]
    ids: list[int] = tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    ids = (ids if len(ids) > 1 else plain)[: min(tokenizer.model_max_length, _TOKENS)]
    half = len(ids) // 2
    begin, end = ids[:half], ids[half : 2 * half]
    # Not a piece of the text: to a vocabulary of another script, all pieces are the unknown token.
    other = [next((number for number in plain if number not in ids), ids[0])] * half
    # One after the other: the rows of a batch may affect each other.
    found = [compute(begin + rest)[:half] for rest in (end, other)]
    # If there is NaN, so there is in the answer, which is an error of its own.
    return differs_by_rounding(dtype, found[1], found[0], "one shape") is not False

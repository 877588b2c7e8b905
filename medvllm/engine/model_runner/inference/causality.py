"""Whether a model reads a text in one direction: what it makes of a token never depends on the tokens after it."""

from typing import Any
from weakref import WeakKeyDictionary

from medvllm.engine.model_runner.inference.part import Part, find_part
from medvllm.engine.model_runner.inference.torch_forward import TorchForward
from medvllm.engine.model_runner.inference.trial import PROBE, differs_by_rounding, without_callers_settings
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.model_registry import Lease

_TOKENS = 24

_is_causal: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()  # by module


def is_causal(lease: Lease, part: Part) -> bool:
    """Return whether a part of a model is a decoder. It is tried once for each module if the config does not tell.

    The config seldom tells: BERT and GPT-NeoX, for example, have the same fields with the same values.

    Args:
        lease: The model in use.
        part: The part that has numbers for each token: "tokens" or "head_tokens".

    Raises:
        LoadError: The model cannot run.
        RequestError: The model does not read text.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING as masked

    module = find_part(lease.model, part)
    config = module.config
    if any(getattr(config, flag, False) for flag in ("is_encoder_decoder", "is_decoder", "causal")):
        return True
    if type(config) in masked:  # a gap is filled from both sides
        return False
    if (known := _is_causal.get(module)) is None:
        known = _is_causal[module] = _try_causality(lease, part)
    return known


def _try_causality(lease: Lease, part: Part) -> bool:
    """Return whether what a model makes of the beginning of a text stays the same with another ending."""
    tokenizer = lease.tokenizer
    plain = [number for number in range(len(tokenizer)) if number not in tokenizer.all_special_ids]
    ids: list[int] = tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    ids = (ids if len(ids) > 1 else plain)[: min(tokenizer.model_max_length, _TOKENS)]
    half = len(ids) // 2
    begin, end = ids[:half], ids[half : 2 * half]
    # Not a piece of the text: to a vocabulary of another script, all pieces are the unknown token.
    other = [next((number for number in plain if number not in ids), ids[0])] * half
    # One after the other: the rows of a batch may affect each other.
    with without_callers_settings(lease):
        forward = TorchForward(lease, part)
        found = [forward.run([Window(0, begin + rest, [])])[0][:half] for rest in (end, other)]
    # If there is NaN, so there is in the answer, which is an error of its own.
    return differs_by_rounding(lease, found[1], found[0], "one shape") is not False

"""Whether a model is a decoder: it can continue a text, because a token never depends on the tokens after it."""

from typing import Any
from weakref import WeakKeyDictionary

from medvllm.engine.model_runner.foreign_errors import translate_model_errors
from medvllm.errors import RequestError
from medvllm.model_registry import Lease

_PROBE = "Patient denies chest pain; ALS was ruled out on 3 May."
# Relative differences that rounding causes, by dtype. Inputs of one length are mostly rounded alike.
_ROUNDING = {"float64": 1e-5, "float32": 1e-5}
_COARSE_ROUNDING = 1e-3

_is_causal: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()  # by model


def check_decoder(lease: Lease) -> None:
    """Raise RequestError if the model cannot generate text."""
    model, name = lease.model, lease.metadata.name
    can_generate = getattr(type(model), "can_generate", None)
    if can_generate is None or not can_generate():
        raise RequestError(
            f"Model {name!r} is loaded as {type(model).__name__}, which cannot generate text.\n"
            "If its checkpoint has a language model head, register it with: "
            "model_class='transformers:AutoModelForCausalLM'",
            model=name,
            task="generate",
        )
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise RequestError(
            f"Model {name!r} reads {model.main_input_name}, not text, so it cannot continue a prompt.\n"
            "List the models that can with: medvllm list --task generate",
            model=name,
            task="generate",
        )
    if not is_causal(lease):
        raise RequestError(
            f"Model {name!r} is no decoder: its {type(model).__name__} reads a text in both directions, so what it "
            "generates would be meaningless.\nList the models that can generate with: medvllm list --task generate",
            model=name,
            task="generate",
        )


def is_causal(lease: Lease) -> bool:
    """Return whether the tokens of an answer depend on earlier tokens only. It is tried once for each model.

    The config does not tell: BERT and GPT-NeoX, for example, have the same field with the same default.
    """
    model = lease.model
    if getattr(model.config, "is_encoder_decoder", False) or getattr(model.config, "is_decoder", False):
        return True
    if (known := _is_causal.get(model)) is None:
        known = _is_causal[model] = _try_causality(lease)
    return known


def _try_causality(lease: Lease) -> bool:
    import torch

    model = lease.model
    ids = lease.tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"]
    ids = ids[: min(lease.tokenizer.model_max_length, 24)]
    half = len(ids) // 2
    with translate_model_errors(lease.metadata.name), torch.inference_mode():
        inputs = torch.tensor([ids[:half] + ids[half : 2 * half], ids[:half] * 2], device=model.device)
        # One after the other: the rows of a batch may affect each other.
        one, other = (model(input_ids=row[None]).logits[0, :half].float() for row in inputs)
        error = float((other - one).norm() / one.norm())
    # If it is NaN, so is the answer, which is an error of its own.
    return not error > _ROUNDING.get(str(model.dtype).removeprefix("torch."), _COARSE_ROUNDING)

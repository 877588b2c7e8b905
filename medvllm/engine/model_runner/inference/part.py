"""The parts of a model that answer: its encoder, or its head."""

from inspect import signature, unwrap
from typing import Any, Literal

from medvllm.errors import RequestError
from medvllm.heads import task_of_class

# Hidden states of the encoder, logits of a head for each token, or logits of a head for a whole window.
Part = Literal["tokens", "head_tokens", "head_texts"]


def find_part(model: Any, part: Part) -> Any:
    """Return the module of a model that computes a part.

    Raises:
        RequestError: The model does not read text.
    """
    return get_encoder(model) if part == "tokens" else model


def get_encoder(model: Any) -> Any:
    """Return the part of a model that computes a vector for each token of a text.

    For an encoder-decoder this is the encoder, unless the model computes its decoder's input itself, as BART does.

    Raises:
        RequestError: The model does not read text.
    """
    base = model.base_model
    if getattr(base.config, "is_encoder_decoder", False) and not _computes_decoder_input(base):
        base = base.get_encoder()
    main = getattr(base, "main_input_name", "input_ids")
    if main != "input_ids" and "input_ids" not in signature(base.forward).parameters:
        raise RequestError(
            f"A {type(model).__name__} reads {main}, not text, so it cannot embed texts.\n"
            "List the models that can with: medvllm list --task embed"
        )
    return base


def judges_whole_texts(model: Any) -> bool:
    """Return whether a model has one row of logits for a whole text."""
    return task_of_class(type(model).__name__) == "classify"


def _computes_decoder_input(base: Any) -> bool:
    """Return whether an encoder-decoder computes the decoder's input from the text that it gets."""
    names = unwrap(type(base).forward).__code__.co_names
    return "shift_tokens_right" in names or "_prepare_fsmt_decoder_inputs" in names

"""Whether a model can generate text: it has a language model head, and it is a decoder."""

from medvllm.engine.model_runner.inference.causality import is_causal
from medvllm.engine.model_runner.other_class import advise_class
from medvllm.errors import RequestError
from medvllm.model_registry import Lease


def check_decoder(lease: Lease) -> None:
    """Raise RequestError if the model cannot generate text."""
    model, name = lease.model, lease.metadata.name
    can_generate = getattr(type(model), "can_generate", None)
    if can_generate is None or not can_generate():
        raise RequestError(
            f"Model {name!r} is loaded as {type(model).__name__}, which cannot generate text.\n"
            f"{advise_class(lease, 'generate')}",
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
    if not is_causal(lease, "head_tokens"):
        raise RequestError(
            f"Model {name!r} is no decoder: its {type(model).__name__} reads a text in both directions, so what it "
            "generates would be meaningless.\nList the models that can generate with: medvllm list --task generate",
            model=name,
            task="generate",
        )

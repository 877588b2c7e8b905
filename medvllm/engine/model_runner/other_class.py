"""Which other class of transformers makes a checkpoint do a task, for the advice of an error."""

from contextlib import suppress
from typing import Any

from medvllm.engine.model_runner.inference.causality import is_causal
from medvllm.errors import MedVLLMError
from medvllm.model_registry import Lease

_HEADS = {"fill-mask": "masked language model head", "generate": "language model head"}


def advise_class(lease: Lease, task: str) -> str:
    """Return the line of an error that says with which class the model's checkpoint might do a task.

    If the architecture has no such class, or would be refused with it too, the line lists other models.

    Args:
        lease: The model in use, whose class does not do the task.
        task: "fill-mask" or "generate".
    """
    if (found := _find_class(lease, task)) is None:
        return f"List the models that can with: medvllm list --task {task}"
    return f"If its checkpoint has a {_HEADS[task]}, register it with: model_class='transformers:{found}'"


def _find_class(lease: Lease, task: str) -> str | None:
    """Return the name of the Auto class that does a task for the model's architecture, or None."""
    import transformers

    config: Any = lease.model.config
    if task == "fill-mask":
        name = "AutoModelForMaskedLM"
    elif getattr(config, "is_encoder_decoder", False):
        name = "AutoModelForSeq2SeqLM"
    else:
        name = "AutoModelForCausalLM"
    classes: Any = getattr(transformers, name)._model_mapping
    if type(config) not in classes:
        return None
    meant = classes[type(config)]
    if task == "fill-mask":
        does = meant.__name__.endswith("ForMaskedLM") and not isinstance(lease.model, meant)
        return name if does else None
    with suppress(MedVLLMError):
        return name if is_causal(lease, "tokens") else None
    return None

"""What a folder declares about the scores of a cross-encoder, which sentence-transformers wrote in three ways."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from medvllm.sources.json_files import read_json
from medvllm.sources.sentence.fields import shorten
from medvllm.sources.sentence.folder import ModelFiles

_WHOLE = "config_sentence_transformers.json"
_ACTIVATIONS: dict[str, Literal["sigmoid", "softmax", "none"]] = {
    "torch.nn.Identity": "none",
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.Softmax": "softmax",
    "torch.nn.modules.activation.Softmax": "softmax",
}


@dataclass(frozen=True)
class Scoring:
    """How a cross-encoder scores a pair.

    Attributes:
        activation: How logits become scores; None if the folder does not say. "none" also if it says nothing of several
            labels, as sentence-transformers writes it then.
        unknown_activation: Why the activation that the folder states cannot be used.
        prompt: The text that stands before each query.
        refusal: What in the folder medvllm does not support. The folder then gives no scores.
    """

    activation: Literal["sigmoid", "softmax", "none"] | None = None
    unknown_activation: str | None = None
    prompt: str = ""
    refusal: str | None = None


def read_scoring(model: ModelFiles) -> Scoring | None:
    """Return what a folder declares about its scores, or None if sentence-transformers wrote no cross-encoder there.

    Raises:
        SourceError: A file of the folder is damaged.
    """
    file = _WHOLE
    whole = read_json(model.file(file)) if file in model.files else {}
    if whole.get("model_type") == "CrossEncoder":
        return _read_modules(model, whole)
    file = f"{model.root}config.json"
    config = read_json(model.file(file)) if file in model.files else {}
    own = config.get("sentence_transformers")
    if isinstance(own, dict):
        return _read_activation(own.get("activation_fn"), file)
    if (older := config.get("sbert_ce_default_activation_function")) is not None:  # before 4.0
        return _read_activation(older, file)
    return None


def _read_modules(model: ModelFiles, whole: dict[str, Any]) -> Scoring:
    """Return what a folder declares that lists its modules, as later releases write it."""
    file = _WHOLE
    listed = read_json(model.file("modules.json"), list) if "modules.json" in model.files else []
    kinds = [str(module.get("type")).rpartition(".")[2] if isinstance(module, dict) else "?" for module in listed]
    if kinds != ["Transformer"]:
        return Scoring(refusal=f"has the modules {', '.join(kinds)[:200]} in modules.json, not a Transformer alone")
    prompts, default = whole.get("prompts") or {}, whole.get("default_prompt_name")
    prompt = prompts.get(default, None if default else "") if isinstance(prompts, dict) else None
    if not isinstance(prompt, str):  # a message must not show the text of a prompt
        return Scoring(refusal=f"has a default prompt that is no text in {file}")
    return replace(_read_activation(whole.get("activation_fn"), file), prompt=prompt)


def _read_activation(path: object, file: str) -> Scoring:
    if path is None:
        return Scoring()
    if isinstance(path, str) and path in _ACTIVATIONS:
        return Scoring(_ACTIVATIONS[path])
    why = f"has the activation {shorten(path)} in {file}, which medvllm does not support"
    return Scoring(unknown_activation=why)

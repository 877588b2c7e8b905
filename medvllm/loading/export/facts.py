"""What a task must know of an exported model and its tokenizer."""

import json
from typing import Any

from medvllm.loading.causality import tell_causality, try_causality
from medvllm.loading.export.parts import Part
from medvllm.loading.export.tokenizer_file import describe_tokenizer
from medvllm.loading.proof import labels_digest, tokenizer_digest
from medvllm.options import Identity


def describe_model(model: Any, part: Part, identity: Identity, tokenizer: Any) -> dict[str, Any]:
    """Return the facts of an exported model, as JSON values.

    Args:
        model: The model.
        part: The part that is exported.
        identity: What the model was loaded as.
        tokenizer: Its tokenizer.
    """
    config = model.config
    fields = config.to_dict()
    # Fields under the names that all models share, and those that transformers computes.
    names = {*config.attribute_map, "num_labels", "problem_type", "hidden_size", "pad_token_id"}
    fields |= {name: getattr(config, name) for name in sorted(names) if hasattr(config, name)}
    facts = {
        "part": part.name,
        "precision": "float32",
        "model_class": type(model).__name__,
        "options": identity.options.to_dict(),
        "config": fields,
        "padding_id": part.padding_id,
        "embeddings": part.embeddings,
        "types": part.types,
        "is_causal": _is_causal(model, part, tokenizer),
        "tokenizer": describe_tokenizer(tokenizer),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "labels_sha256": labels_digest(config),
    }
    read: dict[str, Any] = json.loads(json.dumps(facts, default=str, sort_keys=True))
    return read


def _is_causal(model: Any, part: Part, tokenizer: Any) -> bool:
    """Return whether a part reads a text in one direction; False if it judges whole texts."""
    if part.name == "head_texts":
        return False
    if (told := tell_causality(part.module.config)) is not None:
        return told
    return try_causality(lambda ids: part.compute([ids])[0].numpy(), tokenizer, model.dtype)

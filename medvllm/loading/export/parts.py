"""The part of a model that an engine computes: its module, what goes in, and which of its outputs counts."""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from medvllm.heads import task_of_class
from medvllm.loading.stateless import depends_on_length, rows_compete


class NoSuchPart(Exception):
    """A part that a model does not have, or whose answers an engine could not give; the message says why."""


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a model.

    Attributes:
        name: "tokens" for a vector of each token, "head_tokens" for the logits of each token, "head_texts" for the
            logits of each text.
        module: The model, or its encoder.
        inputs: The names of the inputs.
        padding_id: The id of tokens that the mask hides.
        embeddings: How many tokens have an embedding.
        types: How many texts of a pair have an embedding; 1 if they are not told apart.
    """

    name: str
    module: Any
    inputs: list[str]
    padding_id: int
    embeddings: int
    types: int

    @classmethod
    def of(cls, model: Any, name: str, padding_id: object) -> "Part":
        """Return a part of a model.

        Raises:
            NoSuchPart: The model does not have it, or its answer for a text depends on more than the text.
        """
        config, kind = model.config, type(model).__name__
        if getattr(config, "is_encoder_decoder", False):
            raise NoSuchPart(f"{kind} has an encoder and a decoder")
        is_fit = {
            "tokens": True,
            "head_tokens": kind.endswith(("ForTokenClassification", "ForMaskedLM")),
            "head_texts": task_of_class(kind) == "classify",
        }[name]
        if not is_fit:
            raise NoSuchPart(f"{kind} has no such output")
        module = model.base_model if name == "tokens" else model
        if rows_compete(module) or depends_on_length(module):
            raise NoSuchPart(f"the answer of {kind} for a text depends on the texts beside it, or on its padding")
        parameters = signature(module.forward).parameters
        if "attention_mask" not in parameters or "input_ids" not in parameters:
            raise NoSuchPart(f"{kind} takes no mask, or no tokens")
        embeddings = getattr(module.get_input_embeddings(), "num_embeddings", None)
        if not isinstance(embeddings, int):
            raise NoSuchPart(f"{kind} does not say how many tokens it knows")
        padding = padding_id if isinstance(padding_id, int) and padding_id < embeddings else 0
        types = getattr(config, "type_vocab_size", None)
        types = types if "token_type_ids" in parameters and isinstance(types, int) and types > 1 else 1
        inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if types > 1 else [])]
        return cls(name, module, inputs, padding, embeddings, types)

    def output(self, found: Any) -> torch.Tensor:
        """Return the output that counts of what the module returns."""
        if isinstance(found, tuple):
            first: torch.Tensor = found[0]
            return first
        field: torch.Tensor = found.last_hidden_state if self.name == "tokens" else found.logits
        return field

    def compute(self, ids: list[list[int]], types: list[list[int]] | None = None) -> torch.Tensor:
        """Return the output for rows of equal lengths, which need no padding."""
        tokens = torch.tensor(ids)
        known = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if types is not None and self.types > 1:
            known["token_type_ids"] = torch.tensor(types)
        with torch.inference_mode():
            return self.output(self.module(**known)).float()

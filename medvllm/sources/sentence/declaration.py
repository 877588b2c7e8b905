"""A declaration: how a sentence-transformers model makes a vector of a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medvllm.facts import PoolingMode, Texts


@dataclass(frozen=True)
class Dense:
    """A linear layer on vectors, followed by an activation."""

    path: str
    in_features: int
    out_features: int
    bias: bool
    activation: str  # the dotted name of its class
    residual: bool


@dataclass(frozen=True)
class LayerNorm:
    """A layer that centres and scales vectors."""

    path: str
    dimension: int


@dataclass(frozen=True)
class Normalize:
    """A layer that scales vectors to unit length."""

    path: str


Module = Dense | LayerNorm | Normalize


@dataclass(frozen=True)
class Declaration:
    """How a folder's vectors are made.

    Attributes:
        max_length: The number of tokens that the model reads.
        lowercases: Whether texts are lowercased before the tokenizer sees them.
        pooling: How token vectors become one vector. Several modes are concatenated.
        include_prompt: Whether the tokens of a prompt are pooled too.
        modules: The layers after the pooling, in order.
        prompts: Texts that can be put before an input, by name.
        default_prompt_name: The prompt for inputs that name none.
        truncate_dim: The number of values to keep of each vector.
        similarity: How two vectors are compared.
        refusal: What in the folder medvllm does not support. The folder then gives no vectors.
    """

    max_length: int | None = None
    lowercases: bool = False
    pooling: PoolingMode | tuple[PoolingMode, ...] | None = None
    include_prompt: bool = True
    modules: tuple[Module, ...] = ()
    prompts: Mapping[str, str] | None = None
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    similarity: str | None = None
    refusal: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that complete an entry, by keyword."""
        last = self.modules[-1] if self.modules else None
        facts: dict[str, Any] = {
            "max_length": self.max_length,
            "pooling": self.pooling,
            "include_prompt": None if self.include_prompt else False,
            # A vector that is cut after it was scaled does not have unit length.
            "normalize": True if isinstance(last, Normalize) and self.truncate_dim is None else None,
            "prompts": Texts(self.prompts) if self.prompts else None,
            "default_prompt_name": self.default_prompt_name,
            "truncate_dim": self.truncate_dim,
            "similarity": self.similarity,
        }
        return {fact: value for fact, value in facts.items() if value is not None}

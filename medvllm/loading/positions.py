"""The positions of a model: how many tokens it can read at once, and whether transformers supports their kind."""

import re
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from medvllm.errors import LoadError
from medvllm.loading.meta_model import build_meta_model
from medvllm.metadata import ModelMetadata

UNLIMITED = 10**9  # transformers uses 1e30 if no length is known
# Fields of a config for the length that a model was trained for, the most reliable first.
_FIELDS = (
    "max_position_embeddings",
    "max_encoder_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "context_length",
)
_TABLE = re.compile(r"(^|\.)(position_embeddings?|pos_embeddings?|embed_positions?|positions_embed|pos_embed|wpe)$")
_NO_TEXT = re.compile(r"vision|visual|image|audio|speech|entity")


@dataclass(frozen=True)
class Positions:
    """How many tokens a model can read.

    Attributes:
        count: The number of tokens; None if it is not known.
        is_firm: Whether the model has a table of so many positions, so that it cannot read more.
    """

    count: int | None
    is_firm: bool = False


def find_positions(config: PreTrainedConfig) -> Positions:
    """Return how many tokens of text a model with this config can read."""
    text = text_config(config)
    stated = next((count for field in _FIELDS if (count := _count(getattr(text, field, None))) is not None), None)
    if (rows := _rows(text)) is not None:
        return Positions(min(rows, stated or rows), is_firm=True)
    return Positions(stated)


def check_kind(metadata: ModelMetadata, config: PreTrainedConfig) -> None:
    """Raise LoadError for a kind of positions that older versions of transformers had, and this one ignores."""
    kind = getattr(config, "position_embedding_type", None)
    known = type(config).__module__.startswith("transformers.")
    if known and kind not in (None, "absolute") and not hasattr(type(config), "position_embedding_type"):
        raise LoadError(
            f"Model {metadata.name!r} has position_embedding_type {str(kind)[:80]!r}, but a {config.model_type!r} of "
            f"transformers {transformers.__version__} has absolute positions only: its outputs would be wrong.\n"
            "Use your own class that computes them: register(…, model_class='module:Class')",
            model=metadata.name,
        )


def text_config(config: Any) -> Any:
    """Return the part of a composite config that describes the text encoder."""
    encoder = getattr(config, "encoder", None)
    if isinstance(encoder, PreTrainedConfig):
        return encoder
    try:
        return config.get_text_config()
    except ValueError:  # there are several
        return config


def _count(value: object) -> int | None:
    """Return a number of positions; None for -1, None, 1e30 and other values that mean no limit."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < UNLIMITED
    return int(value) if fits else None  # type: ignore[call-overload]  # it is a number here


def _rows(config: Any) -> int | None:
    """Return for how many tokens the encoder's position table has rows; None if there is no table."""
    if type(config) not in MODEL_MAPPING or not type(config).__module__.startswith("transformers."):
        return None
    cls = MODEL_MAPPING[type(config)]
    model = build_meta_model(cls[0] if isinstance(cls, (tuple, list)) else cls, config)
    found: dict[str, int] = {}
    for path, module in model.named_modules() if model is not None else ():
        shape: Any = getattr(getattr(module, "weight", None), "shape", ())
        if _TABLE.search(path) and not _NO_TEXT.search(path) and len(shape) == 2:
            found[path] = int(shape[0]) - _offset(module)
    reads = [rows for path, rows in found.items() if "decoder" not in path] or list(found.values())
    return min(reads, default=None)


def _offset(module: Any) -> int:
    """Return how many rows of a table come before that of the first token."""
    if type(offset := getattr(module, "offset", None)) is int:
        return offset
    padding = getattr(module, "padding_idx", None)
    return padding + 1 if type(padding) is int else 0

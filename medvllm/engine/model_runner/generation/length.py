"""How long an answer may be: what the caller asks for, within the model's context."""

from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.generation.prompts import Prompt
from medvllm.errors import InputTooLongError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    from transformers import GenerationConfig

DEFAULT_TOKENS = 256  # of an answer, if the context has room for so many


def set_length(lease: Lease, config: "GenerationConfig", prompt: Prompt, max_new_tokens: int | None) -> None:
    """Set how many tokens an answer may have.

    Args:
        lease: The model in use.
        config: The config of the generation, which is changed.
        prompt: The prompt.
        max_new_tokens: What the caller asks for; None for 256, or fewer if the context has room for fewer.

    Raises:
        InputTooLongError: The prompt leaves no room for the answer.
    """
    used, limit = len(prompt.ids), lease.tokenizer.model_max_length
    wanted = max_new_tokens or 1
    if lease.model.config.is_encoder_decoder:
        room = _count_decoder_positions(lease.model.config, wanted)
        is_too_long = used > limit or wanted > room
    else:
        room = limit - used
        is_too_long = wanted > room
    if is_too_long:
        raise InputTooLongError(
            f"Text {prompt.position + 1} has {used:,} tokens, and its answer needs room for {wanted:,} more, but model "
            f"{lease.metadata.name!r} takes {limit:,}.\nShorten the text, or ask for a shorter answer with: "
            "max_new_tokens=…",
            model=lease.metadata.name,
            limit=limit,
            position=prompt.position,
        )
    config.max_new_tokens = max_new_tokens or min(DEFAULT_TOKENS, room)
    # A model's own shortest answer gives way to the longest one, or no end token would be permitted.
    longest = config.max_new_tokens + (1 if lease.model.config.is_encoder_decoder else used)
    config.min_length = min(config.min_length or 0, longest)
    if config.min_new_tokens:  # 0 would overrule `min_length`
        config.min_new_tokens = min(config.min_new_tokens, config.max_new_tokens)


def _count_decoder_positions(config: Any, wanted: int) -> int:
    """Return how many tokens the decoder of an encoder-decoder can generate."""
    from medvllm.loading.positions import find_positions

    stated = getattr(config, "max_decoder_position_embeddings", None)
    if isinstance(stated, int):
        return stated
    positions = find_positions(config)
    if positions.is_firm and positions.count is not None:
        return positions.count
    return max(wanted, DEFAULT_TOKENS)

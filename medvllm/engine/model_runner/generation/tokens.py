"""The tokens of one answer, one after another, as `generate` of transformers computes them."""

import copy
import os
from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.foreign_errors import translate_model_errors
from medvllm.engine.model_runner.inference.finite import check_finite
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig


def iterate_tokens(
    lease: Lease, ids: list[int], config: "GenerationConfig", position: int, seed: int | None
) -> Generator[int]:
    """Yield the tokens of the answer to one prompt, until an end token, or as many as the config permits.

    Each token is computed when it is asked for. Random numbers come from a generator of the answer's own.

    Args:
        lease: The model in use.
        ids: The prompt.
        config: The config, with `max_new_tokens`.
        position: The prompt's position, for an error.
        seed: The start of the random numbers.

    Raises:
        LoadError: The model cannot run, or returns NaN or infinity.
    """
    import torch

    from medvllm.loading.transformers_output import hide_log

    model = copy.copy(lease.model)  # with the same weights, and a config of its own
    model.generation_config = config
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(os.urandom(7)) if seed is None else seed)
    with translate_model_errors(lease.metadata.name), torch.inference_mode(), hide_log():
        inputs = torch.tensor([ids], device=model.device)
        steps: Iterator[int] = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            generation_config=config,
            custom_generate=partial(_decode, lease=lease, generator=generator, position=position),
        )
    while True:
        # Entered for each step: the caller's own code runs between two of them.
        with translate_model_errors(lease.metadata.name), torch.inference_mode():
            token = next(steps, None)
        if token is None:
            return
        yield token


def _decode(
    model: Any,
    input_ids: "torch.Tensor",
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: "GenerationConfig",
    *,
    lease: Lease,
    generator: "torch.Generator",
    position: int,
    **inputs: Any,
) -> Iterator[int]:
    """The loop of transformers' greedy search and sampling, for one prompt, as a generator of tokens."""
    import torch

    length, is_first = None, True
    while True:
        prepared = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=length, is_first_iteration=is_first, **inputs
        )
        output = model(**prepared, return_dict=True)
        inputs = model._update_model_kwargs_for_generation(
            output, inputs, is_encoder_decoder=model.config.is_encoder_decoder
        )
        logits = output.logits[:, -1].to(copy=True, dtype=torch.float32, device=input_ids.device)
        if not logits.amax().isfinite():  # the largest one is NaN if any is
            check_finite(lease, {position})
        scores = logits_processor(input_ids, logits)
        if generation_config.do_sample:
            token = torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator).to(input_ids.device)
        else:
            token = scores.argmax(-1, keepdim=True)
        input_ids = torch.cat([input_ids, token], dim=-1)
        yield int(token)
        if stopping_criteria(input_ids, None).all():
            return
        length, is_first = 1 if inputs["use_cache"] else None, False

"""Several prompts at once, by the continuous batching of transformers."""

import copy
import logging
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from math import ceil
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from medvllm.engine.model_runner.foreign_errors import translate_model_errors
from medvllm.engine.model_runner.generation.answering import Answering
from medvllm.engine.model_runner.generation.answers import Piece
from medvllm.engine.model_runner.generation.settings import has_rules
from medvllm.engine.model_runner.inference.finite import check_finite
from medvllm.engine.model_runner.request import Limits, current_limits
from medvllm.errors import LoadError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    from transformers import GenerationConfig

_MOST_AT_ONCE = 32
_PAGE = 64  # tokens
_STEP_TOKENS = 512  # in one step: each costs a row of a mask that is as wide as the cache
_SHARE = 2  # the cache takes at most a half of the memory that is left
_POLL_S = 0.2
_PROBE = "Patient denies chest pain; ALS was ruled out on 3 May."
_PROBE_TOKENS = 3
# Differences of a log probability that rounding causes, by dtype.
_ROUNDING = {"float64": 2e-4, "float32": 2e-4}
_COARSE_ROUNDING = 0.15
_LOG = "ContinuousBatchingLogger"

_is_safe: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()  # by model


def can_run_together(lease: Lease, answers: Sequence[Answering]) -> bool:
    """Return whether a model can generate several answers at once, and each is the same as alone.

    Some models mix up the texts of a batch, without an error. So it is tried once for each model.
    """
    from medvllm.loading.stateless import depends_on_length, rows_compete

    model = lease.model
    if find_spec("psutil") is None or not getattr(model, "_supports_attention_backend", False):
        return False
    if model.config.is_encoder_decoder or len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return False
    if any(has_rules(answer.config) for answer in answers):  # continuous batching ignores most of them
        return False
    if depends_on_length(model) or rows_compete(model):
        return False
    if not _count_blocks(lease, [_length(answer) for answer in answers]):
        return False
    if (known := _is_safe.get(model)) is None:
        known = _is_safe[model] = _try_together(lease, answers[0].config)
    return known


def run_together(lease: Lease, answers: Sequence[Answering], limits: Limits) -> Generator[Piece]:
    """Yield the last piece of each answer, in the order in which they are complete.

    Raises:
        LoadError: The model cannot run, or returns NaN or infinity.
    """
    unfinished = {str(answer.prompt.position): answer for answer in answers}
    done = dict.fromkeys(unfinished, 0)  # tokens
    with _started(lease, answers[0].config, [_length(answer) for answer in answers]) as manager:
        for name, answer in unfinished.items():
            config = answer.config
            manager.add_request(
                answer.prompt.ids,
                request_id=name,
                max_new_tokens=config.max_new_tokens,
                eos_token_id=config.eos_token_id,
                streaming=answer.needs_each_token,
            )
        while unfinished:
            output = _get_output(lease, manager, limits)
            if output.request_id not in unfinished:
                continue  # it has found its stop text
            answer = unfinished[output.request_id]
            begin, done[output.request_id] = done[output.request_id], len(output.generated_tokens)
            if any(number != number for number in output.logprobs[begin:]):  # it is NaN, also if a logit is infinite
                check_finite(lease, {answer.prompt.position})
            for token in output.generated_tokens[begin:]:
                if not answer.is_complete and (piece := answer.add(token)) is not None:
                    yield piece
            if answer.is_complete:
                del unfinished[output.request_id]
                manager.cancel_request(output.request_id)


def _try_together(lease: Lease, config: "GenerationConfig") -> bool:
    """Return whether a model gives tokens of several texts at once the probabilities that it gives them alone."""
    import torch

    model = lease.model
    limit = lease.tokenizer.model_max_length - _PROBE_TOKENS
    ids = lease.tokenizer(_PROBE, add_special_tokens=False, verbose=False)["input_ids"][:limit]
    prompts = [ids[: len(ids) * share // 4] for share in (1, 4, 2)]
    if not prompts[0]:
        return False
    try:
        with _started(lease, config, [len(prompt) + _PROBE_TOKENS for prompt in prompts]) as manager:
            for number, prompt in enumerate(prompts):
                manager.add_request(prompt, request_id=str(number), max_new_tokens=_PROBE_TOKENS, eos_token_id=-1)
            outputs = [_get_output(lease, manager, current_limits()) for _ in prompts]
    except (LoadError, ValueError, AttributeError):  # the model has a kind of layer that the cache does not know
        return False
    allowed = _ROUNDING.get(str(model.dtype).removeprefix("torch."), _COARSE_ROUNDING)
    for output in outputs:
        prompt, tokens = prompts[int(output.request_id)], output.generated_tokens
        with translate_model_errors(lease.metadata.name), torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + tokens], device=model.device)).logits[0].float().cpu()
        alone = logits[len(prompt) - 1 : -1].log_softmax(-1)
        own = alone[range(len(tokens)), tokens]
        error = (own - torch.tensor(output.logprobs)).abs().max()
        # The token may only be another one than alone if both are equally likely.
        if not max(float(error), float((alone.amax(-1) - own).max())) <= allowed:
            return False
    return True


def _get_output(lease: Lease, manager: Any, limits: Limits) -> Any:
    """Return the next output of the manager."""
    while True:
        limits.check()
        output = manager.get_result(timeout=_POLL_S)
        if output is not None:
            if output.error is None:
                return output
            with translate_model_errors(lease.metadata.name):
                raise RuntimeError(output.error)
        if not manager.is_running():
            raise LoadError(
                f"Model {lease.metadata.name!r} stopped before the answers were complete.", model=lease.metadata.name
            )


@contextmanager
def _started(lease: Lease, config: "GenerationConfig", lengths: Sequence[int]) -> Iterator[Any]:
    """Run a manager of continuous batching on a copy of the model that has the same weights.

    Args:
        lease: The model in use.
        config: A config of the generation.
        lengths: The tokens of each prompt with its answer, at most.
    """
    from transformers import ContinuousBatchingConfig

    batching = ContinuousBatchingConfig(
        page_size=_PAGE,
        num_blocks=_count_blocks(lease, lengths),
        max_batch_tokens=_STEP_TOKENS,
        max_requests_per_batch=min(len(lengths), _MOST_AT_ONCE),
        max_blocks_per_request=0,
        return_logprobs=True,
        use_cuda_graph=False,
        use_async_batching=False,
        auto_switch_to_flash=False,
    )
    greedy = copy.copy(config)
    if greedy.eos_token_id is None:
        greedy.eos_token_id = -1  # none; transformers warns of None
    with _hidden_log() as threads:
        manager = _share_weights(lease.model).init_continuous_batching(greedy, batching)
        manager.start()
        threads.add(manager._generation_thread.ident)
        try:
            yield manager
        finally:
            manager.stop(hard_stop=True)
            manager.destroy()


@contextmanager
def _hidden_log() -> Iterator[set[int | None]]:
    """Hide what continuous batching logs in this thread, and in those that are added. Its errors reach the caller."""
    threads = {threading.get_ident(), None}

    def is_shown(record: logging.LogRecord) -> bool:
        return record.thread not in threads

    log = logging.getLogger(_LOG)
    log.addFilter(is_shown)
    try:
        yield threads
    finally:
        log.removeFilter(is_shown)


def _share_weights(model: Any) -> Any:
    """Return a copy of a model that shares the weights. Continuous batching changes the copy's kind of attention."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def _length(answer: Answering) -> int:
    return len(answer.prompt.ids) + int(answer.config.max_new_tokens)


def _count_blocks(lease: Lease, lengths: Sequence[int]) -> int:
    """Return how many blocks the cache needs for the longest answers at once; 0 if not even one fits in the memory."""
    blocks = sorted((ceil(length / _PAGE) + 1 for length in lengths), reverse=True)
    wanted = 2 * blocks[0] + sum(blocks[:_MOST_AT_ONCE])  # with spare ones, so that no answer is interrupted
    left = lease.free_bytes()
    if left is None:
        return wanted
    fitting = left // _SHARE // _block_bytes(lease.model)
    return min(wanted, fitting) if fitting >= 3 * blocks[0] else 0


def _block_bytes(model: Any) -> int:
    """Return the bytes of the keys and values of a page of tokens."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * _PAGE * model.dtype.itemsize)

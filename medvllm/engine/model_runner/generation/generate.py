"""The task generate: the text with which a decoder continues a prompt, or answers a conversation."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from typing import Any

from medvllm import progress
from medvllm.engine.model_runner.generation.answering import Answering
from medvllm.engine.model_runner.generation.answers import Answer, GenerationResults, Piece
from medvllm.engine.model_runner.generation.continuous import can_run_together, run_together
from medvllm.engine.model_runner.generation.decoder import check_decoder
from medvllm.engine.model_runner.generation.length import set_length
from medvllm.engine.model_runner.generation.options import GenerationOptions, check_generate_options
from medvllm.engine.model_runner.generation.prompts import read_prompts
from medvllm.engine.model_runner.generation.settings import make_generation_config
from medvllm.engine.model_runner.generation.text import AnswerText
from medvllm.engine.model_runner.generation.tokens import iterate_tokens
from medvllm.engine.model_runner.request import Limits, current_limits
from medvllm.model_registry import Lease


def generate(
    lease: Lease,
    texts: Iterable[Any],
    *,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    allow_special_tokens: bool = False,
) -> GenerationResults:
    """Return what the model generates for each prompt. `ModelRunner.generate` describes the arguments.

    Raises:
        InputTooLongError: A prompt leaves no room for the answer.
        RequestError: The model is no decoder, or a prompt or an option cannot be used.
        LoadError: The model cannot run, or returns NaN or infinity.
        DeadlineError: The deadline of the request has passed.
        RequestCancelledError: The request was cancelled.
    """
    options = check_generate_options(
        max_new_tokens=max_new_tokens,
        stop=stop,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        allow_special_tokens=allow_special_tokens,
    )
    limits = current_limits()
    answers = _begin(lease, texts, options, limits, is_streamed=False)
    found: dict[int, Answer] = {}
    with closing(_run(lease, answers, options, limits)) as pieces:
        complete = ((piece.position, piece.answer) for piece in pieces if piece.answer)
        for _ in progress.track_items("Running", answers):
            position, answer = next(complete)
            found[position] = answer
    return GenerationResults(found[position] for position in range(len(answers)))


def stream(lease: Lease, prompts: Iterable[Any], options: GenerationOptions, limits: Limits) -> Generator[Piece]:
    """Yield the text that the model generates, piece by piece, one prompt after the other."""
    return _run_alone(lease, _begin(lease, prompts, options, limits, is_streamed=True), options, limits)


def _begin(
    lease: Lease, prompts: Iterable[Any], options: GenerationOptions, limits: Limits, *, is_streamed: bool
) -> list[Answering]:
    check_decoder(lease)
    answers = []
    for prompt in read_prompts(lease, prompts, allow_special_tokens=options.allow_special_tokens):
        config = make_generation_config(lease.model, lease.tokenizer, options, is_conversation=prompt.is_conversation)
        set_length(lease, config, prompt, options.max_new_tokens)
        continues = [] if lease.model.config.is_encoder_decoder else prompt.ids
        text = AnswerText(lease.tokenizer, continues, options.stop, is_streamed=is_streamed)
        answers.append(Answering(prompt, config, text))
    limits.take_tokens(sum(len(answer.prompt.ids) for answer in answers))
    return answers


def _run(lease: Lease, answers: list[Answering], options: GenerationOptions, limits: Limits) -> Generator[Piece]:
    # Random numbers would depend on the other prompts.
    is_together = len(answers) > 1 and not options.temperature and can_run_together(lease, answers)
    return run_together(lease, answers, limits) if is_together else _run_alone(lease, answers, options, limits)


def _run_alone(lease: Lease, answers: list[Answering], options: GenerationOptions, limits: Limits) -> Generator[Piece]:
    for answer in answers:
        prompt = answer.prompt
        with closing(iterate_tokens(lease, prompt.ids, answer.config, prompt.position, options.seed)) as tokens:
            while not answer.is_complete:
                limits.check()
                if (piece := answer.add(next(tokens))) is not None:
                    yield piece

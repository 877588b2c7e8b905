"""What a runner can do with a model: one function a task, from texts to results."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvllm import progress
from medvllm.engine.model_runner.batches import batches, check_numbers, encoder_of, run, unsound
from medvllm.engine.model_runner.entities import find_entities
from medvllm.engine.model_runner.filling import fill_mask
from medvllm.engine.model_runner.inputs import Text, check_pairs, plain_texts
from medvllm.engine.model_runner.pooling import Pool, finish
from medvllm.engine.model_runner.prompts import choose, token_count
from medvllm.engine.model_runner.windows import Coverage, split
from medvllm.errors import RequestError
from medvllm.heads import task_of
from medvllm.model_registry import Lease
from medvllm.near_names import did_you_mean, near_names

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Embeddings:
    """Vectors of texts: float32 on the CPU, one row a text, and what of each text they cover, its prompt included."""

    vectors: "torch.Tensor"
    coverage: list[Coverage]

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record a text, as JSON has it."""
        rows = zip(self.vectors.tolist(), self.coverage, strict=True)
        return [vars(coverage) | {"vector": vector} for vector, coverage in rows]


def embed(
    lease: Lease, texts: Iterable[Text], *, prompt_name: str | None = None, prompt: str | None = None
) -> Embeddings:
    """Return a vector for each text, as the entry and a sentence-transformers folder say; else the mean of its tokens.

    A text longer than the model is read in overlapping windows, each of its tokens counted once. An entry whose
    `inputs` are two takes pairs of texts. `prompt` is put in front of each text, or the one that is known as
    `prompt_name`; else the one of the entry's role, or the default one.

    RequestError: a text has no tokens, or the model was trained for something else than vectors and its entry states no
    pooling.
    """
    behaviour, modules = lease.metadata.behaviour, lease.modules
    _check_pooling(lease)
    chosen = choose(lease, prompt_name, prompt)
    if len(behaviour.inputs) == 2:
        pairs = check_pairs(texts, behaviour.inputs)
        given: Sequence[Text] = [(chosen + first, second) for first, second in pairs]
    else:
        given = [chosen + text for text in plain_texts(lease, texts, "embed")]
    windows, coverage = split(lease.tokenizer, given, behaviour.long_input)
    if (empty := next((window.text for window in windows if not window.input_ids), None)) is not None:
        raise RequestError(f"Text {empty + 1} has no tokens, so it has no vector.", position=empty)
    skipped = token_count(lease.tokenizer, chosen) if behaviour.include_prompt is False else 0
    encoder = encoder_of(lease.model)
    size = getattr(encoder.config, "hidden_size", 0)
    pool = Pool(behaviour.pooling or "mean", windows, len(coverage), size, skipped)
    for batch in progress.of_items("Running", batches(lease, encoder, windows)):
        pool.add(batch, run(lease, encoder, batch, "last_hidden_state"))
    vectors = finish(lease.metadata, modules, pool.vectors())
    check_numbers(lease, unsound(vectors, range(len(coverage))))
    return Embeddings(vectors, coverage)


TASKS: dict[str, Callable[..., Any]] = {
    "embed": embed,
    "fill-mask": fill_mask,
    "ner": find_entities,
    "deid": find_entities,
}


def check_task(task: str, arguments: Mapping[str, Any]) -> None:
    """Raise RequestError unless there is a function for the task, and it takes the arguments."""
    if task not in TASKS:
        near = near_names(task, TASKS)
        raise RequestError(
            f"Task {task!r} is not a task that ModelRunner runs{'' if near else ' yet'}.{did_you_mean(near)}\n"
            f"It runs: {', '.join(TASKS)}",
            task=task,
        )
    known = [name for name in inspect.signature(TASKS[task]).parameters if name not in ("lease", "texts")]
    if unknown := next((name for name in arguments if name not in known), None):
        raise RequestError(
            f"Task {task!r} takes no argument {unknown!r}.{did_you_mean(near_names(unknown, known))}\n"
            f"It takes: {', '.join(known) or 'texts alone'}",
            task=task,
            argument=unknown,
        )


def default_task(lease: Lease, texts: Iterable[Any]) -> str:
    """Return the task of a model: the one that its entry states, or else the one that its class was made for.

    A masked language model without an entry fills gaps where there are any, and gives vectors of texts without.
    """
    if stated := lease.metadata.tasks:
        return stated[0]
    kind = type(lease.model).__name__
    if kind.endswith("ForMaskedLM"):
        marks = ("[MASK]", str(lease.tokenizer.mask_token or "[MASK]"))
        return (
            "fill-mask" if any(mark in text for text in texts if isinstance(text, str) for mark in marks) else "embed"
        )
    return task_of(kind) or "embed"


def _check_pooling(lease: Lease) -> None:
    """Raise RequestError where vectors would be made of what was trained for something else, and nobody says how."""
    kind, pooling = type(lease.model).__name__, lease.metadata.behaviour.pooling
    if kind.startswith("DPR") and getattr(lease.model.config, "projection_dim", None):
        raise RequestError(
            f"Model {lease.metadata.name!r} is a {kind} with a projection, which ModelRunner does not apply.",
            model=lease.metadata.name,
        )
    if pooling is None and kind.startswith("DPR"):
        raise RequestError(
            f"Model {lease.metadata.name!r} is a {kind}, whose vectors are those of the first token, "
            "and no pooling is stated for it.\nState it: register(…, pooling='cls')",
            model=lease.metadata.name,
        )
    if pooling is None and kind.endswith(("ForTokenClassification", "ForSequenceClassification")):
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {kind}: it was trained to classify, and no pooling is stated "
            "that would make vectors of it.\nIf vectors are meant, state it: register(…, pooling='mean')",
            model=lease.metadata.name,
        )

"""The tasks that ModelRunner can run."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from medvllm.engine.model_runner.classification.assertions import check_assertion_options, find_assertions
from medvllm.engine.model_runner.classification.classify import check_classify_options, classify
from medvllm.engine.model_runner.classification.rerank import check_rerank_options, rerank
from medvllm.engine.model_runner.embedding.embed import check_embed_options, embed
from medvllm.engine.model_runner.fill_mask import check_fill_mask_options, fill_mask
from medvllm.engine.model_runner.foreign_errors import translate_other_errors
from medvllm.engine.model_runner.generation.generate import generate
from medvllm.engine.model_runner.generation.options import check_generate_options
from medvllm.engine.model_runner.redaction.operators import Operators
from medvllm.engine.model_runner.redaction.redact import check_redact_options, redact
from medvllm.engine.model_runner.results import Result
from medvllm.engine.model_runner.tagging.entities import check_entity_options, find_entities, find_identifiers
from medvllm.errors import RequestError
from medvllm.heads import task_of_class
from medvllm.metadata import ModelMetadata
from medvllm.model_registry import Lease
from medvllm.near_names import did_you_mean, near_names

# Each function takes a lease, the texts and its own options.
TASKS: dict[str, Callable[..., Result]] = {
    "embed": embed,
    "fill-mask": fill_mask,
    "ner": find_entities,
    "deid": find_identifiers,
    "redact": redact,
    "classify": classify,
    "rerank": rerank,
    "generate": generate,
    "assertions": find_assertions,
}
# Each function takes the options of a task and raises RequestError for those that no model could use. It may return
# operators, in which the keys of a call are drawn and read.
_OPTION_CHECKS: dict[str, Callable[..., object]] = {
    "embed": check_embed_options,
    "fill-mask": check_fill_mask_options,
    "ner": check_entity_options,
    "deid": check_entity_options,
    "redact": check_redact_options,
    "classify": check_classify_options,
    "rerank": check_rerank_options,
    "assertions": check_assertion_options,
    "generate": check_generate_options,
}


def check_task(task: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a task, checked and read once, before a model is loaded.

    Raises:
        RequestError: ModelRunner cannot run the task, or the task cannot use one of the arguments.
    """
    if not isinstance(task, str):
        raise RequestError(f"A task must be a text, such as 'embed', not {type(task).__name__}.")
    if task not in TASKS:
        near = near_names(task, TASKS)
        raise RequestError(
            f"ModelRunner cannot run task {task!r}{'' if near else ' yet'}.{did_you_mean(near)}\n"
            f"It can run: {', '.join(TASKS)}",
            task=task,
        )
    known = [name for name in inspect.signature(TASKS[task]).parameters if name not in ("lease", "texts")]
    if unknown := next((name for name in arguments if name not in known), None):
        raise RequestError(
            f"Task {task!r} takes no argument {unknown!r}.{did_you_mean(near_names(unknown, known))}\n"
            f"Its arguments: {', '.join(known)}",
            task=task,
            argument=unknown,
        )
    read = _OPTION_CHECKS[task](**arguments)
    return {**arguments, "operators": read} if isinstance(read, Operators) else dict(arguments)


def run_task(lease: Lease, task: str | None, texts: Sequence[Any], arguments: Mapping[str, Any]) -> Result:
    """Run a task on a model in use, or the model's own task if none is named.

    Args:
        lease: The model.
        task: The task; None for the model's own one.
        texts: The texts.
        arguments: The options of the task. If it is named, `check_task` has returned them.

    Raises:
        MedVLLMError: The task, the texts or the arguments cannot be used, or the model cannot run.
    """
    with translate_other_errors(lease.metadata.name):
        chosen = task or default_task(lease, texts)
        if task is None:
            arguments = check_task(chosen, arguments)
        result = TASKS[chosen](lease, texts, **arguments)
        result.task = chosen
        return result


def task_of_entry(entry: ModelMetadata) -> str | None:
    """Return the first task of an entry: one that it states, or else what its folder says. None: a load has to tell.

    The folder of an adapter does not tell: the task of its base may be a narrower one.
    """
    stated = entry.without_folder_facts().tasks
    tasks = stated or (() if entry.is_adapter else entry.tasks)
    return tasks[0] if tasks else None


def default_task(lease: Lease, texts: Iterable[Any]) -> str:
    """Return the task of a model in use, as `own_task` says."""
    kind, has_gap = type(lease.model).__name__, False
    if kind.endswith("ForMaskedLM"):
        masks = ("[MASK]", str(lease.tokenizer.mask_token or "[MASK]"))
        has_gap = any(mask in text for text in texts if isinstance(text, str) for mask in masks)
    is_scorer = lease.scoring is not None and (task_of_class(kind) != "classify" or lease.model.config.num_labels == 1)
    return own_task(lease.metadata, kind, has_gap=has_gap, is_scorer=is_scorer)


def own_task(metadata: ModelMetadata, class_name: str, *, has_gap: bool, is_scorer: bool) -> str:
    """Return the first task of an entry, or the task that the model's class was made for.

    Args:
        metadata: The entry.
        class_name: The name of the model's class.
        has_gap: Whether a text has a gap. A masked language model without an entry then fills it, and embeds otherwise.
        is_scorer: Whether the files say that the model is a cross-encoder.
    """
    if stated := metadata.tasks:
        return stated[0]
    if is_scorer:
        return "rerank"
    if class_name.endswith("ForMaskedLM"):
        return "fill-mask" if has_gap else "embed"
    return task_of_class(class_name) or "embed"

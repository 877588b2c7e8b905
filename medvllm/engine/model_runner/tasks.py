"""The tasks that ModelRunner can run."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.foreign_errors import translate_other_errors
from medvllm.engine.model_runner.results import Result
from medvllm.errors import RequestError
from medvllm.heads import task_of_class
from medvllm.metadata import ModelMetadata
from medvllm.near_names import did_you_mean, near_names

if TYPE_CHECKING:
    from medvllm.model_registry import Lease

# Each task with its module, imported once the task is used, and two functions of it. The first takes a lease, the texts
# and the options of the task. The second takes the options and raises RequestError for those that no model could use;
# it may return operators, in which the keys of a call are drawn and read.
TASKS = {
    "embed": ("embedding.embed", "embed", "check_embed_options"),
    "fill-mask": ("fill_mask", "fill_mask", "check_fill_mask_options"),
    "ner": ("tagging.entities", "find_entities", "check_entity_options"),
    "deid": ("tagging.entities", "find_identifiers", "check_entity_options"),
    "redact": ("redaction.redact", "redact", "check_redact_options"),
    "classify": ("classification.classify", "classify", "check_classify_options"),
    "rerank": ("classification.rerank", "rerank", "check_rerank_options"),
    "generate": ("generation.generate", "generate", "check_generate_options"),
    "assertions": ("classification.assertions", "find_assertions", "check_assertion_options"),
}


def parameters_of(task: str) -> dict[str, inspect.Parameter]:
    """Return the options of a task by their names."""
    parameters = inspect.signature(_run_of(task)).parameters
    return {name: each for name, each in parameters.items() if name not in ("lease", "texts")}


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
    known = list(parameters_of(task))
    if unknown := next((name for name in arguments if name not in known), None):
        raise RequestError(
            f"Task {task!r} takes no argument {unknown!r}.{did_you_mean(near_names(unknown, known))}\n"
            f"Its arguments: {', '.join(known)}",
            task=task,
            argument=unknown,
        )
    read = _check_of(task)(**arguments)
    return {**arguments, "operators": read} if task == "redact" else dict(arguments)


def run_task(lease: "Lease", task: str | None, texts: Sequence[Any], arguments: Mapping[str, Any]) -> Result:
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
        result = _run_of(chosen)(lease, texts, **arguments)
        result.task = chosen
        return result


def task_of_entry(entry: ModelMetadata) -> str | None:
    """Return the first task of an entry: one that it states, or else what its folder says. None: a load has to tell.

    The folder of an adapter does not tell: the task of its base may be a narrower one.
    """
    stated = entry.without_folder_facts().tasks
    tasks = stated or (() if entry.is_adapter else entry.tasks)
    return tasks[0] if tasks else None


def default_task(lease: "Lease", texts: Iterable[Any]) -> str:
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


def _run_of(task: str) -> Callable[..., Result]:
    module, run, _ = TASKS[task]
    found: Callable[..., Result] = getattr(_import(module), run)
    return found


def _check_of(task: str) -> Callable[..., object]:
    module, _, check = TASKS[task]
    found: Callable[..., object] = getattr(_import(module), check)
    return found


def _import(module: str) -> ModuleType:
    return import_module(f"medvllm.engine.model_runner.{module}")

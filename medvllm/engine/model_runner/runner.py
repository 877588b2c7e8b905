"""ModelRunner: a model's name and texts in, results out."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.edge import answering
from medvllm.engine.model_runner.inputs import Text, listed
from medvllm.errors import CatalogError
from medvllm.metadata import ModelMetadata
from medvllm.model_registry import ModelRegistry, registry
from medvllm.receipt import Receipt
from medvllm.words import usual_task

if TYPE_CHECKING:
    from medvllm.engine.model_runner.entities import Entities
    from medvllm.engine.model_runner.filling import Fill
    from medvllm.engine.model_runner.tasks import Embeddings


class ModelRunner:
    """Runs one model's tasks. The model is leased for each call only, so an idle runner keeps nothing in memory.

    `options` are those of `registry.load_model`.
    """

    def __init__(self, name: "str | os.PathLike[str]", *, registry: ModelRegistry = registry, **options: Any) -> None:
        self._name, self._registry, self._options = name, registry, options
        self._entry: ModelMetadata | None = None  # of a runner that another process has sent: what its name means

    def __reduce__(self) -> "tuple[Any, ...]":
        """Go to another process as a name, with its entry where that is known in this process alone."""
        entry = self._entry or self._registry.own_entry(self._name)
        return _received, (type(self), self._name, self._registry, self._options, entry)

    def __repr__(self) -> str:
        return f"ModelRunner({str(self._name)!r})"

    def embed(
        self, texts: Iterable[Text], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> "Embeddings":
        """Return a vector for each text, pooled as the entry says; long texts are read in overlapping windows.

        Where the entry's `inputs` are two, such as a title and an abstract, each item is a pair of texts. `prompt` is
        put in front of each text, or the one that the model knows as `prompt_name`; without either, the prompt of the
        entry's role, or the default one. RequestError: the model has no prompt of that name.
        """
        result: Embeddings = self.run("embed", texts, prompt_name=prompt_name, prompt=prompt)[0]
        return result

    def fill_mask(self, texts: Iterable[str], *, top_k: int = 5) -> "list[list[list[Fill]]]":
        """Return for each text, for each [MASK] in it, the `top_k` likeliest word pieces with their probabilities."""
        result: list[list[list[Fill]]] = self.run("fill-mask", texts, top_k=top_k)[0]
        return result

    def entities(self, texts: Iterable[str]) -> "list[Entities]":
        """Return the spans that a tagger finds in each text: entities, or what a de-identifier would take out."""
        result: list[Entities] = self.run("ner", texts)[0]
        return result

    def record_baseline(self, *, reason: str | None = None) -> ModelMetadata:
        """Record the model's output for a few synthetic inputs in its entry, and return the entry.

        A stored entry keeps the baseline. An entry of this process has it as long as the process runs. A built-in entry
        is stored as a copy.

        Args:
            reason: Why; the history of a stored entry keeps it.
        """
        from medvllm.engine.model_runner.baseline import compute_cases

        self._check_entry()
        name = self._registry.get_metadata(self._name).reference  # before anything is loaded
        with self._registry.lease(name, **self._options) as lease, answering(name):
            cases = compute_cases(lease)
        return self._registry.record_baseline(name, cases, reason=reason)

    def check_baseline(self) -> dict[str, str]:
        """Compute the baseline again, and return how each case deviates: an empty dict if none does.

        Raises:
            CatalogError: The entry has no baseline.
        """
        from medvllm.engine.model_runner.baseline import find_deviations

        self._check_entry()
        metadata = self._registry.get_metadata(self._name)
        if not metadata.baseline:
            raise CatalogError(
                f"Model {metadata.name!r} has no baseline.\n"
                f"Record one with: medvllm baseline record {metadata.reference}",
                model=metadata.name,
            )
        with self._registry.lease(metadata.reference, **self._options) as lease, answering(metadata.name):
            return find_deviations(lease, metadata.baseline)

    def run(self, task: str | None, texts: Iterable[Text], **arguments: Any) -> tuple[Any, str, Receipt]:
        """Return the task's result, the task (the model's own when None) and the receipt of what answered.

        RequestError: the texts or arguments cannot be used, or the task is not one that can be run. InputTooLongError:
        the task may not cut a text. LoadError: the model cannot run, or gives NaN or infinity.
        """
        from medvllm.engine.model_runner.tasks import TASKS, check_task, default_task

        if task is not None:
            task = usual_task(task) if isinstance(task, str) else task
            check_task(task, arguments)  # before anything is loaded
        self._check_entry()
        given = listed(texts)  # what a caller's own generator raises is the caller's
        with self._registry.lease(self._name, **self._options) as lease, answering(lease.metadata.name):
            chosen = task or default_task(lease, given)
            check_task(chosen, arguments)
            return TASKS[chosen](lease, given, **arguments), chosen, lease.receipt

    def _check_entry(self) -> None:
        """Raise ModelExistsError where a runner that was sent here would run another model than it was sent for."""
        if self._entry is not None:
            self._registry.adopt(self._entry)


def _received(
    kind: type[ModelRunner],
    name: "str | os.PathLike[str]",
    registry: ModelRegistry,
    options: dict[str, Any],
    entry: ModelMetadata | None,
) -> ModelRunner:
    """Make a runner of what another process has sent."""
    runner = kind(name, registry=registry, **options)
    runner._entry = entry
    return runner

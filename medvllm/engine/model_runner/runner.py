"""ModelRunner: a model's name and texts in, results out."""

import os
from collections.abc import Iterable
from inspect import signature
from typing import TYPE_CHECKING, Any

from medvllm.errors import CatalogError, RequestError, nearest, offer
from medvllm.metadata import ModelMetadata
from medvllm.receipt import Receipt
from medvllm.registry import ModelRegistry, registry

if TYPE_CHECKING:
    from medvllm.engine.model_runner.tasks import Embeddings, Fill, Tags


class ModelRunner:
    """Runs one model's tasks. The model is leased for each call only, so an idle runner keeps nothing in memory.

    `options` are those of `registry.load_model`.
    """

    def __init__(self, name: "str | os.PathLike[str]", *, registry: ModelRegistry = registry, **options: Any) -> None:
        self._name, self._registry, self._options = name, registry, options

    def __repr__(self) -> str:
        return f"ModelRunner({str(self._name)!r})"

    def embed(self, texts: Iterable[str], *, prompt_name: str | None = None, prompt: str | None = None) -> "Embeddings":
        """Return a vector for each text, pooled as the entry says; long texts are read in overlapping windows.

        `prompt` is put in front of each text, or the one that the model knows as `prompt_name`; without either, the
        prompt of the entry's role, or the default one. RequestError: the model has no prompt of that name.
        """
        result: Embeddings = self.run("embed", texts, prompt_name=prompt_name, prompt=prompt)[0]
        return result

    def fill_mask(self, texts: Iterable[str], *, top_k: int = 5) -> "list[list[list[Fill]]]":
        """Return for each text, for each [MASK] in it, the `top_k` likeliest word pieces with their probabilities."""
        result: list[list[list[Fill]]] = self.run("fill-mask", texts, top_k=top_k)[0]
        return result

    def tag(self, texts: Iterable[str]) -> "list[Tags]":
        """Return the spans that a tagger finds in each text: entities, or what a de-identifier would take out."""
        result: list[Tags] = self.run("ner", texts)[0]
        return result

    def accept(self, *, reason: str | None = None) -> ModelMetadata:
        """Record what the model makes of a few synthetic inputs into its entry, and return that; see `drift`.

        A stored version keeps it, an entry of this process as long as the process; a built-in one is stored as a copy.
        """
        from medvllm.engine.model_runner.acceptance import cases

        name = self._registry.get_metadata(os.fspath(self._name)).reference  # before anything is loaded
        with self._registry.lease(name, **self._options) as lease:
            made = cases(lease)
        return self._registry.accept(name, made, reason=reason)

    def drift(self) -> dict[str, str]:
        """Run the entry's acceptance tests again, and return how each that fails differs; {} when all pass.

        CatalogError: the entry has none.
        """
        from medvllm.engine.model_runner.acceptance import drift

        metadata = self._registry.get_metadata(os.fspath(self._name))
        if not metadata.acceptance:
            raise CatalogError(
                f"Model {metadata.name!r} has no acceptance tests.\nRecord them with: medvllm accept {metadata.name}",
                model=metadata.name,
            )
        with self._registry.lease(metadata.reference, **self._options) as lease:
            return drift(lease, metadata.acceptance)

    def run(self, task: str | None, texts: Iterable[str], **arguments: Any) -> tuple[Any, str, Receipt]:
        """Return the task's result, the task (the entry's own when None) and the receipt of what answered."""
        from medvllm.engine.model_runner.tasks import TASKS, is_tagger

        with self._registry.lease(self._name, **self._options) as lease:
            own = lease.metadata.tasks
            chosen = task or next((known for known in own if known in TASKS), own[0] if own else None)
            chosen = chosen or ("ner" if is_tagger(lease.model) else "embed")
            if chosen not in TASKS:
                near = nearest(chosen, TASKS)
                raise RequestError(
                    f"Task {chosen!r} is not one that ModelRunner runs.{offer(near)}\nThere is: {', '.join(TASKS)}",
                    task=chosen,
                )
            taken = list(signature(TASKS[chosen]).parameters)[2:]  # behind the lease and the texts
            if unknown := next((argument for argument in arguments if argument not in taken), None):
                raise RequestError(
                    f"Task {chosen!r} takes no {unknown!r}.\nIt takes: {', '.join(taken) or 'texts alone'}",
                    task=chosen,
                    option=unknown,
                )
            return TASKS[chosen](lease, texts, **arguments), chosen, lease.receipt

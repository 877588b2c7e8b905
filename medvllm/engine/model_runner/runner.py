"""ModelRunner: a model's name and texts in, results out."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from medvllm.errors import RequestError, nearest, offer
from medvllm.receipt import Receipt
from medvllm.registry import ModelRegistry, registry

if TYPE_CHECKING:
    from medvllm.engine.model_runner.tasks import Embeddings, Fill


class ModelRunner:
    """Runs one model's tasks. The model is leased for each call only, so an idle runner keeps nothing in memory.

    `options` are those of `registry.load_model`.
    """

    def __init__(self, name: "str | os.PathLike[str]", *, registry: ModelRegistry = registry, **options: Any) -> None:
        self._name, self._registry, self._options = name, registry, options

    def __repr__(self) -> str:
        return f"ModelRunner({str(self._name)!r})"

    def embed(self, texts: Iterable[str]) -> "Embeddings":
        """Return a vector for each text, pooled as the entry says; long texts are read in overlapping windows."""
        result: Embeddings = self.run("embed", texts)[0]
        return result

    def fill_mask(self, texts: Iterable[str], *, top_k: int = 5) -> "list[list[list[Fill]]]":
        """Return for each text, for each [MASK] in it, the `top_k` likeliest word pieces with their probabilities."""
        result: list[list[list[Fill]]] = self.run("fill-mask", texts, top_k=top_k)[0]
        return result

    def run(self, task: str | None, texts: Iterable[str], **arguments: Any) -> tuple[Any, str, Receipt]:
        """Return the task's result, the task (the entry's own when None) and the receipt of what answered."""
        from medvllm.engine.model_runner.tasks import TASKS

        with self._registry.lease(self._name, **self._options) as lease:
            chosen = task or next((known for known in lease.metadata.tasks if known in TASKS), "embed")
            if chosen not in TASKS:
                near = nearest(chosen, TASKS)
                raise RequestError(
                    f"Task {chosen!r} is not known.{offer(near)}\nThere is: {', '.join(TASKS)}",
                    task=chosen,
                )
            return TASKS[chosen](lease, texts, **arguments), chosen, lease.receipt

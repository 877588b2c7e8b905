"""Leases the model for a task: one of torch, or one that an engine computes."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.engine_gate import EngineGate
from medvllm.model_registry import Lease, ModelRegistry

if TYPE_CHECKING:
    from medvllm.engine.model_runner.inference.part import Part
    from medvllm.engines import EngineName, Precision
    from medvllm.metadata import ModelMetadata
    from medvllm.sources import Snapshot

_PARTS: "dict[str, Part]" = {
    "embed": "tokens",
    "ner": "head_tokens",
    "deid": "head_tokens",
    "redact": "head_tokens",
    "fill-mask": "head_tokens",
    "classify": "head_texts",
    "rerank": "head_texts",
    "assertions": "head_texts",
}


_GATE = EngineGate()
_GAPS = "[MASK]", "<mask>"


@dataclass(frozen=True)
class PartOf:
    """Chooses the part of a model for a task; None is the model's own one, which texts with gaps may decide."""

    task: str | None
    has_gap: bool

    def __call__(self, metadata: "ModelMetadata", snapshot: "Snapshot") -> "Part | None":
        task = self.task
        if task is None:
            from medvllm.engine.model_runner.tasks import own_task

            named = snapshot.config.get("architectures")
            class_name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
            task = own_task(metadata, class_name, has_gap=self.has_gap, is_scorer=snapshot.scoring is not None)
        return _PARTS.get(task)


def lease_for_task(
    registry: ModelRegistry,
    name: "str | os.PathLike[str]",
    options: Mapping[str, Any],
    engine: "EngineName",
    precision: "Precision",
    task: str | None,
    texts: Sequence[Any] = (),
) -> AbstractContextManager[Lease]:
    """Return what leases the model for a task, for the duration of a `with` block.

    Args:
        registry: The registry.
        name: The name of the model.
        options: The options of the load.
        engine: What computes. If an engine cannot, torch does, and the log and the receipt say why.
        precision: The precision that an engine may compute in.
        task: The task; None for the model's own one.
        texts: The texts. Without a task, they may decide it.
    """
    if engine == "torch":
        return registry.lease(name, **options)
    return registry.engine_leases.lease(
        name,
        options,
        PartOf(task, task is None and any(_is_gapped(text) for text in texts)),
        engine,
        precision=precision,
        gate=_GATE,
        fallback=partial(registry.lease, name, **options),
    )


def _is_gapped(text: object) -> bool:
    return isinstance(text, str) and any(gap in text for gap in _GAPS)

"""Whether all workers of a batch have loaded the same model."""

from collections.abc import Mapping
from typing import Any

from medvllm.engine.model_runner.batch.conditions import differences_of_models, identity_of
from medvllm.errors import LoadError
from medvllm.receipt import Receipt


class SameModel:
    """Compares what the workers have loaded."""

    def __init__(self) -> None:
        self._identity: Mapping[str, Any] | None = None

    def check(self, receipt: Receipt) -> None:
        """Raise LoadError if a worker has loaded another model than the first one."""
        identity = identity_of(receipt)
        if self._identity is None:
            self._identity = identity
        if different := differences_of_models(self._identity, identity):
            listed = "\n".join(f"  {line}" for line in different)
            raise LoadError(
                f"A worker has loaded {receipt.name!r} otherwise than the first one:\n{listed}\n"
                "Give each machine the same files (medvllm lock NAME), libraries and kind of device, and name the "
                "engine if it was auto: --engine torch"
            )

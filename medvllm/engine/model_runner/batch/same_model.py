"""Whether all workers of a batch have loaded the same model."""

from collections.abc import Mapping
from typing import Any

from medvllm.engine.model_runner.batch.conditions import identity_of
from medvllm.errors import LoadError
from medvllm.receipt import Receipt


class SameModel:
    """Compares what the workers have loaded."""

    def __init__(self) -> None:
        self._identity: Mapping[str, Any] | None = None

    def check(self, receipt: Receipt) -> None:
        """Raise LoadError if a worker has loaded another model than the first one."""
        identity = identity_of(receipt)
        if self._identity not in (None, identity):
            raise LoadError(
                f"A worker has loaded another model {receipt.name!r}: its files have changed, or are others on its "
                "machine.\nApprove one set of files for all: medvllm lock NAME"
            )
        self._identity = identity

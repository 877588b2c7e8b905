"""A part of a model that an engine computes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvllm.engine.model_runner.foreign_errors import translate_model_errors
from medvllm.engine.model_runner.inference.forward import Layout
from medvllm.engine.model_runner.inference.part import Part
from medvllm.engine.model_runner.inference.token_ids import check_ids
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.engines import EngineModel
from medvllm.errors import LoadError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BUDGET = 1024  # tokens in a batch: on a CPU, small batches of similar lengths are faster than large ones


class EngineForward:
    """Runs a part of a model in an engine. Windows are padded, as the comparison with torch has shown to be safe.

    Raises:
        LoadError: The engine computes another part of the model.
    """

    budget = _BUDGET
    layout: Layout = "padded"

    def __init__(self, lease: Lease, part: Part) -> None:
        self._lease = lease
        self._model: EngineModel = lease.model
        if self._model.part != part:
            raise LoadError(
                f"Model {lease.metadata.name!r} was leased from engine {self._model.engine!r} for another task: it "
                f"computes {self._model.part!r}, not {part!r}.",
                model=lease.metadata.name,
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EngineForward) and self._model is other._model

    def __hash__(self) -> int:
        return hash(id(self._model))

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._lease.metadata.name

    @property
    def part(self) -> Part:
        """The part of the model."""
        return self._model.part

    @property
    def device(self) -> str:
        """Where it runs: always "cpu"."""
        return self._model.device

    def run(self, batch: Sequence[Window]) -> "list[NDArray[np.float32]]":
        """Return the numbers of each window, as `Forward` says."""
        check_ids(self._lease, self._model, batch)
        known = self._model.types
        types = [window.types if max(window.types, default=0) < known else () for window in batch]
        with translate_model_errors(self._lease.metadata.name):
            found = self._model.compute_rows([window.input_ids for window in batch], types)
        if self._model.part == "head_texts":
            return found
        return [
            rows if window.wanted is None else rows[list(window.wanted)]
            for rows, window in zip(found, batch, strict=True)
        ]

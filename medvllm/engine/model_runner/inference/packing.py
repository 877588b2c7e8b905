"""Windows of different lengths in one row, without padding."""

from collections.abc import Sequence
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.reading.windows import Window

if TYPE_CHECKING:
    pass


class PackedRow:
    """Windows in one row, the shortest first.

    Attributes:
        order: The position in the batch of each window in the row.
        begins: The position in the row of the first token of each window of the batch.
    """

    def __init__(self, batch: Sequence[Window]) -> None:
        from medvllm.loading.packed_attention import Row

        self._windows = batch
        self.order = sorted(range(len(batch)), key=lambda number: len(batch[number].input_ids))
        self._row = Row.of(len(batch[number].input_ids) for number in self.order)
        self.begins = [0] * len(batch)
        for number, begin in zip(self.order, self._row, strict=False):
            self.begins[number] = begin

    def inputs(self, module: Any, first_position: int | None, *, has_types: bool) -> "dict[str, Any]":
        """Return the arguments of a model for the row.

        Args:
            module: The model.
            first_position: The number of the first position of a text; None if the model takes no positions.
            has_types: Whether the windows have the numbers of texts in a pair, and the model takes them.
        """
        import torch

        windows = [self._windows[number] for number in self.order]
        ids = torch.tensor([[token for window in windows for token in window.input_ids]])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "cu_seq_lens_q": self._row}
        if first_position is not None:
            places = [torch.arange(first_position, first_position + len(window.input_ids)) for window in windows]
            inputs["position_ids"] = torch.cat(places).unsqueeze(0)
        if has_types:
            inputs["token_type_ids"] = torch.tensor(
                [[kind for window in windows for kind in window.types or (0,) * len(window.input_ids)]]
            )
        return inputs


def first_positions(module: Any, padding: int) -> Sequence[int | None]:
    """Return the numbers that the first position of a text may have in a model. Empty: it takes no rows of texts.

    RoBERTa counts from the number behind that of the padding token.
    """
    parameters = signature(module.forward).parameters
    if all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ()
    return tuple(dict.fromkeys((0, padding + 1))) if "position_ids" in parameters else (None,)

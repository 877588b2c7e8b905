"""The reference engine: the model that transformers made, run by torch."""

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from medvllm.engine.model_runner.foreign_errors import translate_model_errors
from medvllm.engine.model_runner.inference.forward import Layout
from medvllm.engine.model_runner.inference.part import Part, find_part, judges_whole_texts
from medvllm.engine.model_runner.inference.token_ids import check_ids, find_padding_id
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.errors import LoadError, MedVLLMError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

# Tokens in a batch. On a CPU, small batches of similar lengths are faster than large ones.
_BUDGETS = {"cpu": 1024}
_DEVICE_BUDGET = 16_384
# Relative differences that rounding causes, by dtype. Padding that changes the answer causes larger ones.
_ROUNDING = {"float64": 2e-5, "float32": 2e-5, "float16": 1e-2}
_COARSE_ROUNDING = 5e-2
_PROBE = "Patient denies chest pain; ALS was ruled out on 3 May."

_layouts: "WeakKeyDictionary[Any, dict[Part, Layout]]" = WeakKeyDictionary()  # by module


class TorchForward:
    """Runs a part of a model in torch, and pads only if padding does not change the answer.

    Raises:
        RequestError: The model does not read text.
    """

    def __init__(self, lease: Lease, part: Part) -> None:
        self._lease, self._part = lease, part
        self._module = find_part(lease.model, part)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchForward) and self._module is other._module and self._part == other._part

    def __hash__(self) -> int:
        return hash((id(self._module), self._part))

    @property
    def budget(self) -> int:
        """The number of tokens that run together."""
        return _BUDGETS.get(str(self._lease.model.device), _DEVICE_BUDGET)

    @property
    def layout(self) -> Layout:
        """Which windows may run together. It is tried once for each model."""
        known = _layouts.setdefault(self._module, {})
        if self._part not in known:
            known[self._part] = self._find_layout()
        return known[self._part]

    def run(self, batch: Sequence[Window]) -> "list[NDArray[np.float32]]":
        """Return the numbers of each window, as `Forward` says."""
        found, length = self._run_block(batch)
        if self._part == "head_texts":
            if found.ndim != 2 or len(found) != len(batch):
                raise LoadError(
                    f"Model {self._lease.metadata.name!r} is a {type(self._module).__name__}, which has no logits for "
                    "a whole text.",
                    model=self._lease.metadata.name,
                )
            return list(found.float().cpu().numpy())
        if found.shape[:2] != (len(batch), length):
            raise LoadError(
                f"Model {self._lease.metadata.name!r} returns {found.shape[1]:,} vectors for {length:,} tokens.",
                model=self._lease.metadata.name,
            )
        return _take_wanted(found.flatten(0, 1), batch, [row * length for row in range(len(batch))])

    def _run_block(self, batch: Sequence[Window]) -> "tuple[torch.Tensor, int]":
        """Return the output for a batch with padding, and how long its rows are."""
        check_ids(self._lease, self._module, batch)
        inputs = {
            "input_ids": _pad([window.input_ids for window in batch], find_padding_id(self._lease, self._module)),
            "attention_mask": _pad([[1] * len(window.input_ids) for window in batch]),
        }
        if _takes_types(self._module, batch):
            inputs["token_type_ids"] = _pad([window.types for window in batch])
        return self._call(inputs), inputs["input_ids"].shape[1]

    def _call(self, inputs: "dict[str, torch.Tensor]") -> "torch.Tensor":
        """Return the output of the module that belongs to the part."""
        import torch

        name = self._lease.metadata.name
        field = "last_hidden_state" if self._part == "tokens" else "logits"
        with translate_model_errors(name), torch.inference_mode():
            output = self._module(**{key: tensor.to(self._lease.model.device) for key, tensor in inputs.items()})
            # A config may ask for tuples. Without labels, the wanted output is the first item.
            found = output[0] if isinstance(output, tuple) else getattr(output, field, None)
        if not isinstance(found, torch.Tensor):
            raise LoadError(
                f"Model {name!r} is a {type(self._module).__name__}, which has no output {field!r} for a text.",
                model=name,
            )
        return found

    def _find_layout(self) -> Layout:
        from medvllm.loading.stateless import depends_on_length, rows_compete

        if rows_compete(self._module) or _takes_one_row(self._module):
            return "single"
        return "padded" if not depends_on_length(self._module) and self._bears_padding() else "equal"

    def _bears_padding(self) -> bool:
        """Return whether padding leaves the numbers of a short text unchanged."""
        length = min(self._lease.tokenizer.model_max_length, 37)
        ids = self._lease.tokenizer(_PROBE, verbose=False)["input_ids"][:length]
        row, longest = Window(0, ids[: len(ids) * 5 // 8], []), Window(0, ids, [])
        if not row.input_ids:
            return False
        try:
            alone, padded = self.run([row])[0], self.run([longest, row])[1]
        except MedVLLMError:  # it takes no padding at all
            return False
        return _is_close(padded, alone, str(self._lease.model.dtype).removeprefix("torch."))


def _is_close(found: "NDArray[np.float32]", expected: "NDArray[np.float32]", dtype: str) -> bool:
    """Return whether numbers differ by rounding only. Each token counts: padding may change only the last one."""
    import numpy as np

    norms = np.linalg.norm(expected, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = float((np.linalg.norm(found - expected, axis=-1) / norms).max())
    return error <= _ROUNDING.get(dtype, _COARSE_ROUNDING)


def _take_wanted(rows: "torch.Tensor", batch: Sequence[Window], begins: Sequence[int]) -> "list[NDArray[np.float32]]":
    """Return the rows of the wanted tokens of each window, of which the first one is in row `begin`."""
    import numpy as np
    import torch

    places = [window.places for window in batch]
    index = np.concatenate([np.asarray(place, np.int64) + begin for place, begin in zip(places, begins, strict=True)])
    if len(index) < len(rows):
        rows = rows[torch.from_numpy(index).to(rows.device)]
    return np.split(rows.float().cpu().numpy(), np.cumsum([len(place) for place in places])[:-1])


def _pad(rows: Sequence[Sequence[int]], padding: int = 0) -> "torch.Tensor":
    """Return rows of numbers as one tensor; shorter rows are padded at the end."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def _takes_types(module: Any, batch: Sequence[Window]) -> bool:
    """Return whether the numbers of the texts in a pair are passed to a model.

    A tokenizer may give them to a model with an embedding for the first text only, such as RoBERTa.
    """
    highest = max((max(window.types, default=0) for window in batch), default=0)
    known = getattr(getattr(module, "config", None), "type_vocab_size", None)
    has_room = known is None or highest < known
    return highest > 0 and has_room and "token_type_ids" in signature(module.forward).parameters


def _takes_one_row(module: Any) -> bool:
    """Return whether a head looks for the last token of a row, and does not know which token is padding."""
    if not judges_whole_texts(module):
        return False
    return getattr(module.config.get_text_config(), "pad_token_id", None) is None

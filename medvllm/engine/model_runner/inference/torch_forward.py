"""The reference engine: the model that transformers made, run by torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.foreign_errors import translate_model_errors
from medvllm.engine.model_runner.inference.batch import plan_batches
from medvllm.engine.model_runner.inference.forward import Layout
from medvllm.engine.model_runner.inference.packing import PackedRow, first_positions
from medvllm.engine.model_runner.inference.part import Part, find_part, judges_whole_texts
from medvllm.engine.model_runner.inference.token_ids import check_ids, find_padding_id
from medvllm.engine.model_runner.inference.trial import Outcomes
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.errors import DeviceMemoryError, LoadError, MedVLLMError
from medvllm.model_registry import Lease
from medvllm.rounding import PROBE, differs_by_rounding

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

# Tokens in a batch. On a CPU, small batches of similar lengths are faster than large ones.
BUDGETS = {"cpu": 1024}
_DEVICE_BUDGET = 16_384


@dataclass(frozen=True)
class _Verdict:
    """How windows may run together, and for packed ones the number of the first position of a text."""

    layout: Layout
    first_position: int | None = None


_verdicts: Outcomes[_Verdict] = Outcomes()


class TorchForward:
    """Runs a part of a model in torch, and pads only if padding does not change the answer.

    Raises:
        RequestError: The model does not read text.
    """

    def __init__(self, lease: Lease, part: Part) -> None:
        self._lease = lease
        self._part: Part = part
        self._module = find_part(lease.model, part)
        self._settings = _read_thread_settings(lease.model.device.type)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TorchForward)
            and self._module is other._module
            and self._part == other._part
            and self._settings == other._settings
        )

    def __hash__(self) -> int:
        return hash((id(self._module), self._part))

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._lease.metadata.name

    @property
    def part(self) -> Part:
        """The part of the model."""
        return self._part

    @property
    def device(self) -> str:
        """Where it runs, such as "cpu" or "cuda:0"."""
        return str(self._lease.model.device)

    @property
    def budget(self) -> int:
        """The number of tokens that run together."""
        return BUDGETS.get(str(self._lease.model.device), _DEVICE_BUDGET)

    @property
    def layout(self) -> Layout:
        """Which windows may run together. It is tried once for each model, also if it leaves memory and comes back."""
        return self._verdict().layout

    def run(self, batch: Sequence[Window]) -> "list[NDArray[np.float32]]":
        """Return the numbers of each window, as `Forward` says."""
        check_ids(self._lease, self._module, batch)
        if len({len(window.input_ids) for window in batch}) == 1:
            return self._run_block(batch)
        verdict = self._verdict()
        if verdict.layout == "packed":
            if verdict.first_position and any(self._has_padding(window) for window in batch):
                return [self._run_block([window])[0] for window in batch]
            try:
                return self._run_row(batch, verdict.first_position)
            except DeviceMemoryError:
                raise
            except LoadError:  # the row is longer than a table of the model
                _verdicts.forget(self._lease, self._module, self._part)
                _verdicts.find(self._lease, self._module, self._part, partial(self._try_layouts, packs=False))
        # Planned again: the windows may have come together while the model still ran them in one row.
        found = [pair for part in plan_batches(self, batch) for pair in zip(part, self._run_block(part), strict=True)]
        numbers = {id(window): rows for window, rows in found}
        return [numbers[id(window)] for window in batch]

    def _has_padding(self, window: Window) -> bool:
        """Return whether a text has the padding token in it. A model that counts from its number does not count it."""
        return find_padding_id(self._lease, self._module) in window.input_ids

    def _run_row(self, batch: Sequence[Window], first_position: int | None) -> "list[NDArray[np.float32]]":
        """Return the numbers of windows in one row without padding."""
        from medvllm.loading.packed_attention import pack_attention

        row, module = PackedRow(batch), pack_attention(self._module)
        inputs = row.inputs(module, first_position, has_types=_takes_types(self._module, batch))
        found = self._call(module, inputs)
        self._check_shape(found, inputs["input_ids"].shape)
        return _take_wanted(found[0], batch, row.begins)

    def _run_block(self, batch: Sequence[Window]) -> "list[NDArray[np.float32]]":
        """Return the numbers of windows in rows of one length, with padding."""
        inputs = {
            "input_ids": _pad([window.input_ids for window in batch], find_padding_id(self._lease, self._module)),
            "attention_mask": _pad([[1] * len(window.input_ids) for window in batch]),
        }
        if _takes_types(self._module, batch):
            inputs["token_type_ids"] = _pad([window.types for window in batch])
        found, length = self._call(self._module, inputs), inputs["input_ids"].shape[1]
        if self._part == "head_texts":
            if found.ndim != 2 or len(found) != len(batch):
                raise LoadError(
                    f"Model {self._lease.metadata.name!r} is a {type(self._module).__name__}, which has no logits for "
                    "a whole text.",
                    model=self._lease.metadata.name,
                )
            return list(found.float().cpu().numpy())
        self._check_shape(found, inputs["input_ids"].shape)
        return _take_wanted(found.flatten(0, 1), batch, [row * length for row in range(len(batch))])

    def _check_shape(self, found: "torch.Tensor", shape: Sequence[int]) -> None:
        if found.shape[:2] != shape:
            raise LoadError(
                f"Model {self._lease.metadata.name!r} returns {found.shape[1]:,} vectors for {shape[1]:,} tokens.",
                model=self._lease.metadata.name,
            )

    def _call(self, module: Any, inputs: dict[str, Any]) -> "torch.Tensor":
        """Return the output of a module that belongs to the part."""
        import torch

        name, device = self._lease.metadata.name, self._lease.model.device
        field = "last_hidden_state" if self._part == "tokens" else "logits"
        with translate_model_errors(name), torch.inference_mode():
            output = module(**{key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in inputs.items()})
            # A config may ask for tuples. Without labels, the wanted output is the first item.
            found = output[0] if isinstance(output, tuple) else getattr(output, field, None)
        if not isinstance(found, torch.Tensor):
            raise LoadError(
                f"Model {name!r} is a {type(self._module).__name__}, which has no output {field!r} for a text.",
                model=name,
            )
        return found

    def _verdict(self) -> _Verdict:
        return _verdicts.find(self._lease, self._module, self._part, self._try_layouts)

    def _try_layouts(self, *, packs: bool = True) -> _Verdict:
        from medvllm.loading.stateless import depends_on_length, rows_compete

        if rows_compete(self._module) or _takes_one_row(self._module):
            return _Verdict("single")
        probes = self._make_probes()
        if depends_on_length(self._module) or not probes:
            return _Verdict("equal")
        try:
            alone = [self._run_block([probe])[0] for probe in probes]
        except MedVLLMError:  # it wants a token at the end of a text that a part of a text lacks
            return _Verdict("equal")
        for first_position in self._first_positions() if packs else ():
            if self._agrees(partial(self._run_row, probes, first_position), alone):
                return _Verdict("packed", first_position)
        return _Verdict("padded" if self._agrees(partial(self._run_block, probes), alone) else "equal")

    def _make_probes(self) -> list[Window]:
        """Return short windows of medvllm's own: two of one length, and a longer one."""
        length = min(self._lease.tokenizer.model_max_length, 37)
        ids = self._lease.tokenizer(PROBE, verbose=False)["input_ids"][:length]
        part = len(ids) * 5 // 8
        return [Window(0, ids, []), Window(0, ids[:part], []), Window(0, ids[-part:], [])] if part else []

    def _first_positions(self) -> Sequence[int | None]:
        """Return the first positions to try; none if the part cannot run in a row, or should not on this device."""
        from medvllm.loading.packed_attention import pack_attention

        # A head for whole texts looks at the beginning of a row. On a GPU, each text would be a call of its own.
        if self._part == "head_texts" or self._lease.model.device.type != "cpu" or not pack_attention(self._module):
            return ()
        return first_positions(self._module, find_padding_id(self._lease, self._module))

    def _agrees(self, run: "Callable[[], list[NDArray[np.float32]]]", alone: "Sequence[NDArray[np.float32]]") -> bool:
        """Return whether windows have the numbers together that they have alone. A failure is no agreement."""
        dtype = self._lease.model.dtype
        try:
            pairs = zip(run(), alone, strict=True)
            return all(differs_by_rounding(dtype, *pair, "other shapes") for pair in pairs)
        except MedVLLMError:  # it takes no padding, or no row of several texts
            return False


def _read_thread_settings(device: str) -> tuple[object, ...]:
    """Return what a caller may set in torch for its own thread. It must not reach the windows of other threads."""
    import torch

    is_cast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else None, torch.get_default_device()


def _take_wanted(rows: "torch.Tensor", batch: Sequence[Window], begins: Sequence[int]) -> "list[NDArray[np.float32]]":
    """Return the rows of the wanted tokens of each window, of which the first one is in row `begin`."""
    import numpy as np
    import torch

    places = [window.places for window in batch]
    index = np.concatenate([np.asarray(place, np.int64) + begin for place, begin in zip(places, begins, strict=True)])
    if not np.array_equal(index, np.arange(len(rows))):
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

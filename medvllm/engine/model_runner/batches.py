"""Windows -> batches -> what a model makes of them: padded only where padding changes nothing."""

from collections.abc import Collection, Sequence
from inspect import signature, unwrap
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from medvllm.engine.model_runner.edge import running
from medvllm.engine.model_runner.windows import Window
from medvllm.errors import LoadError, RequestError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = {"cpu": 1024}  # padded tokens of a batch: on a CPU, small batches of like lengths beat large ones
DEVICE_BATCH_TOKENS = 16_384
# Relative differences that rounding makes; what padding changes is larger.
_ROUNDING = {"float64": 2e-5, "float32": 2e-5, "float16": 1e-2}
_COARSE_ROUNDING = 5e-2
_PROBE = "Patient denies chest pain; ALS was ruled out on 3 May."

_bear_padding: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()  # by model


def encoder_of(model: Any) -> Any:
    """Return the part of a model that makes a vector of each token of a text.

    Of an encoder-decoder it is the encoder, unless the model makes its decoder's input by itself, as BART does.
    """
    base = model.base_model
    if getattr(base.config, "is_encoder_decoder", False) and not _feeds_its_decoder(base):
        base = base.get_encoder()
    main = getattr(base, "main_input_name", "input_ids")
    if main != "input_ids" and "input_ids" not in signature(base.forward).parameters:
        raise RequestError(
            f"A {type(model).__name__} reads {main}, not texts: it gives no vectors of them.\n"
            "Models that do are listed with: medvllm list --task embed"
        )
    return base


def batches(lease: Lease, module: Any, windows: Sequence[Window]) -> list[list[Window]]:
    """Return the windows that have tokens in batches of like lengths, each within the device's budget of tokens.

    Lengths are equal where `module`, the part of the model that is to run, does not bear padding.
    """
    from medvllm.loading.stateless import rows_compete

    filled = [window for window in windows if window.input_ids]
    budget = BATCH_TOKENS.get(str(lease.model.device), DEVICE_BATCH_TOKENS)
    packed = _packed(filled, budget)
    if all(len(batch) == 1 for batch in packed):
        return packed
    if rows_compete(module):
        return [[window] for window in filled]
    if any(len(batch[0].input_ids) != len(batch[-1].input_ids) for batch in packed) and not _bears(lease, module):
        return _packed(filled, budget, equal=True)
    return packed


def run(lease: Lease, module: Any, batch: Sequence[Window], field: str) -> "torch.Tensor":
    """Return a field of what `module` makes of a batch, in float32, zero where a row is padded.

    LoadError: it cannot run, or gives no such field. RequestError: a text has a token that it has no embedding for.
    """
    import torch

    _check_ids(lease, module, batch)
    ids = stack([window.input_ids for window in batch], _padding_id(lease, module))
    mask = stack([[1] * len(window.input_ids) for window in batch])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if any(any(window.types) for window in batch) and "token_type_ids" in signature(module.forward).parameters:
        inputs["token_type_ids"] = stack([window.types for window in batch])
    inputs = {name: tensor.to(lease.model.device) for name, tensor in inputs.items()}
    with running(lease.metadata.name), torch.inference_mode():
        output = module(**inputs)
        # A config may ask for tuples: what we want comes first, as no labels are given.
        found = output[0] if isinstance(output, tuple) else getattr(output, field, None)
    if not isinstance(found, torch.Tensor):
        raise LoadError(
            f"Model {lease.metadata.name!r} is a {type(module).__name__}, which gives no {field} for a text.",
            model=lease.metadata.name,
        )
    if found.shape[:2] != ids.shape:
        raise LoadError(
            f"Model {lease.metadata.name!r} gives {found.shape[1]:,} rows of numbers for {ids.shape[1]:,} tokens.",
            model=lease.metadata.name,
        )
    return found.float().masked_fill(inputs["attention_mask"].unsqueeze(-1) == 0, 0)


def unsound(values: "torch.Tensor", positions: Sequence[int]) -> set[int]:
    """Return the positions of the texts whose rows of an answer have NaN or infinity in them."""
    sound = values.isfinite().flatten(1).all(1).tolist()
    return {position for position, is_sound in zip(positions, sound, strict=True) if not is_sound}


def check_numbers(lease: Lease, lacking: Collection[int]) -> None:
    """Raise LoadError for the first of the texts for which a model gave no numbers, if there are any."""
    if lacking:
        position = min(lacking)
        raise LoadError(
            f"Model {lease.metadata.name!r} gives NaN or infinity for text {position + 1}, so there is no answer.\n"
            "In float16 large numbers overflow: load it with dtype='float32'. In float32 its weights are at fault.",
            model=lease.metadata.name,
            position=position,
        )


def stack(rows: Sequence[Sequence[int]], padding: int = 0) -> "torch.Tensor":
    """Return rows of numbers as one tensor, the shorter ones padded behind their end."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def _packed(windows: Sequence[Window], budget: int, *, equal: bool = False) -> list[list[Window]]:
    packed: list[list[Window]] = []
    for window in sorted(windows, key=lambda window: -len(window.input_ids)):
        longest = len(packed[-1][0].input_ids) if packed else 0
        if not packed or longest * (len(packed[-1]) + 1) > budget or (equal and len(window.input_ids) != longest):
            packed.append([])
        packed[-1].append(window)
    return packed


def _bears(lease: Lease, module: Any) -> bool:
    """Return whether a row's output is the same when the row is padded: tried once, with a short text."""
    from medvllm.loading.stateless import depends_on_length

    if (known := _bear_padding.get(module)) is None:
        known = not depends_on_length(module) and _is_unmoved(lease, module)
        _bear_padding[module] = known
    return known


def _is_unmoved(lease: Lease, module: Any) -> bool:
    length = min(lease.tokenizer.model_max_length, 37)
    ids = lease.tokenizer(_PROBE, verbose=False)["input_ids"][:length]
    row, longest = Window(0, ids[: len(ids) * 5 // 8], []), Window(0, ids, [])
    if not row.input_ids:
        return False
    field = "last_hidden_state" if module is not lease.model or module.base_model is module else "logits"
    alone = run(lease, module, [row], field)[0]
    padded = run(lease, module, [longest, row], field)[1, : len(alone)]
    error = float(((padded - alone).norm(dim=-1) / alone.norm(dim=-1)).max())  # of a token: some move only the last
    return error <= _ROUNDING.get(str(lease.model.dtype).removeprefix("torch."), _COARSE_ROUNDING)


def _check_ids(lease: Lease, module: Any, batch: Sequence[Window]) -> None:
    """Raise RequestError for a text with a token beyond the embeddings: one that the tokenizer keeps for padding."""
    known = _embeddings(module)
    for window in batch if known else ():
        if (highest := max(window.input_ids)) >= known:
            # Another token is a piece of the text, which no message holds.
            is_padding = highest == lease.tokenizer.pad_token_id
            advice = (
                f"It holds {lease.tokenizer.pad_token!r}: leave that out."
                if is_padding
                else ("Tokenizer and weights do not belong together: fetch both from one commit.")
            )
            raise RequestError(
                f"Text {window.text + 1} has the token {highest}, and model {lease.metadata.name!r} has {known:,} "
                f"embeddings.\n{advice}",
                model=lease.metadata.name,
                position=window.text,
            )


def _padding_id(lease: Lease, module: Any) -> int:
    """Return an id to pad with: the tokenizer's, or 0 where the embeddings lack it. The mask hides it."""
    padding, known = lease.tokenizer.pad_token_id, _embeddings(module)
    return padding if isinstance(padding, int) and padding < (known or padding + 1) else 0


def _embeddings(module: Any) -> int:
    """Return how many tokens a model has an embedding for; 0 for one that does not tell."""
    try:
        known = getattr(module.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # a model of one's own need not tell
        return 0
    return known if isinstance(known, int) else 0


def _feeds_its_decoder(base: Any) -> bool:
    """Return whether the base model of an encoder-decoder makes its decoder's input of the text that it is given."""
    names = unwrap(type(base).forward).__code__.co_names
    return "shift_tokens_right" in names or "_prepare_fsmt_decoder_inputs" in names

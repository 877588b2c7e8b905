"""Runs windows through a model in batches, and pads only if padding does not change the answer."""

from collections.abc import Collection, Sequence
from inspect import signature, unwrap
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from medvllm.engine.model_runner.foreign_errors import translate_model_errors
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.errors import LoadError, MedVLLMError, RequestError
from medvllm.heads import task_of_class
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import torch

# Padded tokens in a batch. On a CPU, small batches of similar lengths are faster than large ones.
BATCH_TOKENS = {"cpu": 1024}
DEVICE_BATCH_TOKENS = 16_384
# Relative differences that rounding causes, by dtype. Padding that changes the answer causes larger ones.
_ROUNDING = {"float64": 2e-5, "float32": 2e-5, "float16": 1e-2}
_COARSE_ROUNDING = 5e-2
_PROBE = "Patient denies chest pain; ALS was ruled out on 3 May."

_padding_is_safe: "WeakKeyDictionary[Any, bool]" = WeakKeyDictionary()  # by model


def get_encoder(model: Any) -> Any:
    """Return the part of a model that computes a vector for each token of a text.

    For an encoder-decoder this is the encoder, unless the model computes its decoder's input itself, as BART does.

    Raises:
        RequestError: The model does not read text.
    """
    base = model.base_model
    if getattr(base.config, "is_encoder_decoder", False) and not _computes_decoder_input(base):
        base = base.get_encoder()
    main = getattr(base, "main_input_name", "input_ids")
    if main != "input_ids" and "input_ids" not in signature(base.forward).parameters:
        raise RequestError(
            f"A {type(model).__name__} reads {main}, not text, so it cannot embed texts.\n"
            "List the models that can with: medvllm list --task embed"
        )
    return base


def batch_windows(lease: Lease, module: Any, windows: Sequence[Window]) -> list[list[Window]]:
    """Return the windows with tokens in batches of similar lengths, each within the device's number of tokens.

    The windows of a batch have equal lengths if padding would change what `module` computes. `module` is the part of
    the model that will run.
    """
    from medvllm.loading.stateless import rows_compete

    filled = [window for window in windows if window.input_ids]
    budget = BATCH_TOKENS.get(str(lease.model.device), DEVICE_BATCH_TOKENS)
    batches = _pack(filled, budget)
    if all(len(batch) == 1 for batch in batches):
        return batches
    if rows_compete(module) or _takes_one_row(module):
        return [[window] for window in filled]
    needs_padding = any(len(batch[0].input_ids) != len(batch[-1].input_ids) for batch in batches)
    if needs_padding and not _is_padding_safe(lease, module):
        return _pack(filled, budget, equal=True)
    return batches


def run_batch(lease: Lease, module: Any, batch: Sequence[Window], field: str) -> "torch.Tensor":
    """Return one output field of `module` for each token of a batch, in float32.

    Args:
        lease: The model in use.
        module: The model, or the part of it that runs.
        batch: The windows.
        field: The output, for example "logits" or "last_hidden_state".

    Returns:
        A tensor of shape [windows, longest window, size]. Padded positions are zero.

    Raises:
        LoadError: The model cannot run, or has no such output.
        RequestError: A text contains a token without an embedding.
    """
    found, mask = _run(lease, module, batch, field)
    if found.shape[:2] != mask.shape:
        raise LoadError(
            f"Model {lease.metadata.name!r} returns {found.shape[1]:,} vectors for {mask.shape[1]:,} tokens.",
            model=lease.metadata.name,
        )
    return found.float().masked_fill(mask.unsqueeze(-1) == 0, 0)


def run_head(lease: Lease, module: Any, batch: Sequence[Window]) -> "torch.Tensor":
    """Return the logits of a head that judges each window as a whole, in float32.

    Args:
        lease: The model in use.
        module: The model, with its head.
        batch: The windows.

    Returns:
        A tensor of shape [windows, classes].

    Raises:
        LoadError: The model cannot run, or has no logits for a whole window.
        RequestError: A text contains a token without an embedding.
    """
    found, _ = _run(lease, module, batch, "logits")
    if found.ndim != 2 or len(found) != len(batch):
        raise LoadError(
            f"Model {lease.metadata.name!r} is a {type(module).__name__}, which has no logits for a whole text.",
            model=lease.metadata.name,
        )
    return found.float()


def nonfinite_positions(values: "torch.Tensor", positions: Sequence[int]) -> set[int]:
    """Return the positions of the texts whose rows in an answer contain NaN or infinity."""
    finite = values.isfinite().flatten(1).all(1).tolist()
    return {position for position, is_finite in zip(positions, finite, strict=True) if not is_finite}


def check_finite(lease: Lease, nonfinite: Collection[int]) -> None:
    """Raise LoadError for the first text whose answer contains NaN or infinity, if there is any."""
    if nonfinite:
        position = min(nonfinite)
        raise LoadError(
            f"Model {lease.metadata.name!r} gives NaN or infinity for text {position + 1}, so there is no answer.\n"
            "In float16 large numbers overflow; load it with: dtype='float32'\n"
            "If it happens in float32 too, the weights are damaged.",
            model=lease.metadata.name,
            position=position,
        )


def pad_rows(rows: Sequence[Sequence[int]], padding: int = 0) -> "torch.Tensor":
    """Return rows of numbers as one tensor; shorter rows are padded at the end."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def _run(lease: Lease, module: Any, batch: Sequence[Window], field: str) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return an output field of `module` for a batch, and its attention mask."""
    import torch

    _check_ids(lease, module, batch)
    ids = pad_rows([window.input_ids for window in batch], _padding_id(lease, module))
    mask = pad_rows([[1] * len(window.input_ids) for window in batch])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if _takes_types(module, batch):
        inputs["token_type_ids"] = pad_rows([window.types for window in batch])
    inputs = {name: tensor.to(lease.model.device) for name, tensor in inputs.items()}
    with translate_model_errors(lease.metadata.name), torch.inference_mode():
        output = module(**inputs)
        # A config may ask for tuples. Without labels, the wanted output is the first item.
        found = output[0] if isinstance(output, tuple) else getattr(output, field, None)
    if not isinstance(found, torch.Tensor):
        raise LoadError(
            f"Model {lease.metadata.name!r} is a {type(module).__name__}, which has no output {field!r} for a text.",
            model=lease.metadata.name,
        )
    return found, inputs["attention_mask"]


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


def judges_whole_texts(module: Any) -> bool:
    """Return whether a model has one row of logits for a whole text."""
    return task_of_class(type(module).__name__) == "classify"


def _pack(windows: Sequence[Window], budget: int, *, equal: bool = False) -> list[list[Window]]:
    """Return the windows in batches, longest first; `equal`: all windows of a batch have the same length."""
    batches: list[list[Window]] = []
    for window in sorted(windows, key=lambda window: -len(window.input_ids)):
        longest = len(batches[-1][0].input_ids) if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > budget or (equal and len(window.input_ids) != longest):
            batches.append([])
        batches[-1].append(window)
    return batches


def _is_padding_safe(lease: Lease, module: Any) -> bool:
    """Return whether padding leaves the output of a row unchanged. It is tried once for each model."""
    from medvllm.loading.stateless import depends_on_length

    if (known := _padding_is_safe.get(module)) is None:
        known = not depends_on_length(module) and _try_padding(lease, module)
        _padding_is_safe[module] = known
    return known


def _try_padding(lease: Lease, module: Any) -> bool:
    length = min(lease.tokenizer.model_max_length, 37)
    ids = lease.tokenizer(_PROBE, verbose=False)["input_ids"][:length]
    row, longest = Window(0, ids[: len(ids) * 5 // 8], []), Window(0, ids, [])
    if not row.input_ids:
        return False
    try:
        alone, padded = _run_probe(lease, module, [row])[0], _run_probe(lease, module, [longest, row])[1]
    except MedVLLMError:  # it takes no padding at all
        return False
    padded = padded[: len(alone)]
    # Compare each token: in some models, padding changes only the last one.
    error = float(((padded - alone).norm(dim=-1) / alone.norm(dim=-1)).max())
    return error <= _ROUNDING.get(str(lease.model.dtype).removeprefix("torch."), _COARSE_ROUNDING)


def _run_probe(lease: Lease, module: Any, batch: Sequence[Window]) -> "torch.Tensor":
    if judges_whole_texts(module):
        return run_head(lease, module, batch)
    field = "last_hidden_state" if module is not lease.model or module.base_model is module else "logits"
    return run_batch(lease, module, batch, field)


def _check_ids(lease: Lease, module: Any, batch: Sequence[Window]) -> None:
    """Raise RequestError if a text contains a token without an embedding."""
    known = _count_embeddings(module)
    for window in batch if known else ():
        if (highest := max(window.input_ids)) >= known:
            # Name only the padding token: any other token is a piece of the text, which no message contains.
            is_padding = highest == lease.tokenizer.pad_token_id
            advice = (
                f"The text contains {lease.tokenizer.pad_token!r}, the padding token. Remove it."
                if is_padding
                else "The tokenizer does not fit the weights. Take both from the same commit."
            )
            raise RequestError(
                f"Text {window.text + 1} contains token {highest}, but model {lease.metadata.name!r} has only "
                f"{known:,} embeddings.\n{advice}",
                model=lease.metadata.name,
                position=window.text,
            )


def _padding_id(lease: Lease, module: Any) -> int:
    """Return the tokenizer's padding id, or 0 if it has no embedding. The mask hides padding in any case."""
    padding, known = lease.tokenizer.pad_token_id, _count_embeddings(module)
    return padding if isinstance(padding, int) and padding < (known or padding + 1) else 0


def _count_embeddings(module: Any) -> int:
    """Return the number of token embeddings of a model, or 0 if it does not tell."""
    try:
        known = getattr(module.get_input_embeddings(), "num_embeddings", None)
    except (AttributeError, NotImplementedError):  # a custom model class may lack the method
        return 0
    return known if isinstance(known, int) else 0


def _computes_decoder_input(base: Any) -> bool:
    """Return whether an encoder-decoder computes the decoder's input from the text that it gets."""
    names = unwrap(type(base).forward).__code__.co_names
    return "shift_tokens_right" in names or "_prepare_fsmt_decoder_inputs" in names

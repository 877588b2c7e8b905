"""Attention within each of several texts that stand in one row, without padding between them.

transformers hands the keyword `cu_seq_lens_q` of a call on to the function of attention that the config names. To each
text, transformers' own function attends, with the mask that the text would have alone.
"""

import copy
from collections.abc import Iterable
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_REPLACED = "sdpa"
_NAME = "medvllm_packed"


class Row(tuple[int, ...]):
    """Where the texts of a row begin and end: 0, the end of the first text, the end of the second text, and so on.

    Attributes:
        runs: Neighbours of one length, which are attended together: their begin, length and number.
    """

    runs: list[tuple[int, int, int]]

    @classmethod
    def of(cls, lengths: Iterable[int]) -> "Row":
        """Return the row of texts of these lengths."""
        row = cls(accumulate(lengths, initial=0))
        row.runs, begin = [], 0
        for length, same in groupby(end - start for start, end in pairwise(row)):
            number = len(list(same))
            row.runs.append((begin, length, number))
            begin += length * number
        return row


def pack_attention(module: Any) -> Any | None:
    """Return a module that takes rows of texts: a call needs `cu_seq_lens_q=Row.of(lengths)`.

    It is a copy that shares everything with the module but the modules with a config, and those around them. It takes
    a fraction of a millisecond, so it is made for each call: what the module is now is what runs.

    Returns:
        The copy, or None if the module does not use torch's attention. A module may ignore `cu_seq_lens_q`, and then
        its answers are wrong.
    """
    configs: dict[int, PreTrainedConfig] = {}
    packed = _copy_module(module, {}, configs)
    has_hook = bool(configs) and all(config._attn_implementation == _NAME for config in configs.values())
    return packed if has_hook else None


def _copy_module(module: Any, made: dict[int, Any], configs: dict[int, PreTrainedConfig]) -> Any:
    if id(module) in made:  # layers may be one module
        return made[id(module)]
    inner = {name: child and _copy_module(child, made, configs) for name, child in module._modules.items()}
    config = vars(module).get("config")
    made[id(module)] = module
    if isinstance(config, PreTrainedConfig) or any(inner[name] is not child for name, child in module._modules.items()):
        made[id(module)] = packed = object.__new__(type(module))
        packed.__dict__.update(vars(module), _modules=inner)
        if isinstance(config, PreTrainedConfig):
            packed.__dict__["config"] = _copy_config(config, configs)
    return made[id(module)]


def _copy_config(config: PreTrainedConfig, configs: dict[int, PreTrainedConfig]) -> PreTrainedConfig:
    if id(config) not in configs:
        configs[id(config)] = packed = copy.copy(config)
        for name in config.sub_configs:
            if isinstance(part := getattr(config, name, None), PreTrainedConfig):
                setattr(packed, name, _copy_config(part, configs))
        if config._attn_implementation == _REPLACED:
            packed._attn_implementation = _NAME
    return configs[id(config)]


class _Mask:
    """Which tokens a model lets each token of a text see, for any length."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._made: dict[int, Tensor | None] = {}

    def for_length(self, length: int) -> Tensor | None:
        """Return the mask of a text; None if transformers would have none."""
        if length not in self._made:
            shape = {"batch_size": 1, "q_length": length, "kv_length": length, "attention_mask": None}
            options: dict[str, Any] = {**self._options, **shape}
            self._made[length] = sdpa_mask(**options)
        return self._made[length]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    cu_seq_lens_q: Row | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return what transformers' own attention gives for each text of a row.

    Args:
        module: The module that calls.
        query: Of shape (1, heads, tokens, size), as `key` and `value` are.
        key: See `query`.
        value: See `query`.
        attention_mask: What `_Mask` is, or None.
        cu_seq_lens_q: The row.
        position_bias: Of shape (1, heads, tokens, tokens); it depends on the distance of two tokens only.
        options: Those of transformers' function.

    Raises:
        ValueError: The model does not hand the row on, or makes masks itself.
    """
    if cu_seq_lens_q is None or not isinstance(attention_mask, _Mask | None):
        raise ValueError(f"{type(module).__name__} cannot attend to several texts in a row")
    found = []
    for begin, length, number in cu_seq_lens_q.runs:
        mask = None if attention_mask is None else attention_mask.for_length(length)
        if position_bias is not None:
            options["position_bias"] = position_bias[:, :, begin : begin + length, begin : begin + length]
        queries, keys, values = (_split(tensor, begin, length, number) for tensor in (query, key, value))
        output, _ = sdpa_attention_forward(module, queries, keys, values, mask, **options)
        found.append(output.flatten(0, 1))
    return torch.cat(found).unsqueeze(0), None


def _split(tensor: Tensor, begin: int, length: int, number: int) -> Tensor:
    """Return texts of one length as rows of a batch, of shape (texts, heads, length, size)."""
    heads, _, size = tensor.shape[1:]
    return tensor[0, :, begin : begin + length * number].view(heads, number, length, size).transpose(0, 1)


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, _Mask)

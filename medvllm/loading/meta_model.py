"""A model on the meta device: the modules and weights of a class, without the memory that they would take."""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig

from medvllm.loading.transformers_output import hide_log

_LAYERS = re.compile(r"((num|n)_)?((hidden|encoder|decoder)_)?layers?")


def build_meta_model(cls: Any, config: PreTrainedConfig) -> torch.nn.Module | None:
    """Return a model of the class on `meta`, with one layer if its config allows that; None if it cannot be built."""
    for shorter in (True, False):
        own = deepcopy(config)
        try:
            if shorter:
                _shorten(own)
            with torch.device("meta"), _NoRandomWeights(), hide_log():
                made: torch.nn.Module = _without_init(cls)(own)
                return made
        except Exception:  # a class may raise anything for a config that it was not written for
            continue
    return None


class _NoRandomWeights(TorchFunctionMode):
    """Skips the initialization of weights, which takes most of the time, in this thread."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "zero_", "fill_", "kaiming_uniform_"):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _shorten(config: PreTrainedConfig) -> None:
    layers = getattr(config, "num_hidden_layers", None)
    for field, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == layers:  # such as the type of each layer
            setattr(config, field, value[:1])
        elif type(value) is int and value > 1 and _LAYERS.fullmatch(field):
            setattr(config, field, 1)


@cache
def _without_init(cls: Any) -> type[Any]:
    """Return the class without its own initialization of weights."""
    nothing = {"init_weights": lambda self: None, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), nothing)

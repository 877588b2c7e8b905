"""A model of its own that shares the weights of another: the base of many adapters, which none of them may change."""

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig

from medvllm.loading.adapters.identity import encoder_name
from medvllm.loading.stateless import find_stateful, make_stateless


def share_model(base: Any, cls: type[Any], config: PreTrainedConfig) -> Any:
    """Return a model of a class that shares the weights of its base.

    Modules and parameters are new objects, and their memory is the base's. A head that the base lacks is on `meta`.

    Args:
        base: The base model.
        cls: The class of the new model.
        config: Its config.
    """
    if type(base) is cls and base.config.num_labels == config.num_labels:
        shared = {id(tensor): _share(tensor) for tensor in (*base.parameters(), *base.buffers())}
        model = copy.deepcopy(base, shared)
        model.config.id2label, model.config.label2id = config.id2label, config.label2id
        return model
    return _share_encoder(base, cls, config)


def _share_encoder(base: Any, cls: type[Any], config: PreTrainedConfig) -> Any:
    """Return a model of another class, or with another head, that shares the encoder of its base."""
    own = copy.deepcopy(base.config)
    own.id2label, own.label2id = config.id2label, config.label2id
    with torch.device("meta"):
        model = cls(own)
    model.to(base.dtype)
    model.eval()
    tensors = {encoder_name(name, base): tensor for name, tensor in _named(base)}
    tensors.pop(None, None)
    shared: dict[int, torch.Tensor] = {}  # a tensor with two names stays one
    for name, _ in _named(model):
        if (source := tensors.get(encoder_name(name, model))) is not None:
            path, _, attribute = name.rpartition(".")
            kept = shared.setdefault(id(source), _share(source))
            module = model.get_submodule(path)
            (module._parameters if attribute in module._parameters else module._buffers)[attribute] = kept
    if model.base_model is model and getattr(base.base_model, "pooler", None) is None:
        model.pooler = None  # as for the base itself: its checkpoint has none
    model.config._name_or_path = model.name_or_path = base.name_or_path
    make_stateless(model, find_stateful(model))
    return model


def _named(model: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters and buffers of a model, each with all of its names."""
    return [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]


def _share(tensor: torch.Tensor) -> torch.Tensor:
    """Return another tensor with the same memory: a parameter that needs no gradient, or a buffer."""
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor

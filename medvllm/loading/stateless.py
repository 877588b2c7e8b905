"""Models that keep state between calls. All callers share one model, so no call may change the answer of another.

Modules that would remember an input run on a copy that lasts for one call. The copy shares the weights.
"""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, wraps
from typing import Any

import torch
from transformers import PreTrainedConfig

from medvllm.forking import Lock

_SEED = 0
_generator_lock = Lock()  # torch's generator belongs to the whole process


def find_stateful(model: Any) -> tuple[str, ...]:
    """Return the names of the modules that remember inputs, or draw random numbers."""
    done: set[int] = set()
    found = []
    for name, module in model.named_modules():  # outermost first: its copy includes the modules inside
        kind: Any = type(module)
        if id(module) in done or _is_plain(kind):
            continue
        if _follows_length(module) or _grows(module) or _is_random(module):
            done.update(map(id, module.modules()))
            found.append(name)
    return tuple(found)


def make_stateless(model: Any, stateful: Iterable[str]) -> None:
    """Make modules that remember inputs, or draw random numbers, answer as if they were new.

    Their class becomes a subclass of the same name. In training mode nothing changes.

    Args:
        model: The model.
        stateful: What `find_stateful` returns for it.
    """
    for name in stateful:
        module = model.get_submodule(name)
        kind: Any = type(module)
        module.__class__ = _stateless_class(kind)


def depends_on_length(model: Any) -> bool:
    """Return whether the length of an input, including padding, changes how the model computes."""
    return any(_follows_length(module) for module in model.modules() if not _is_plain(module.__class__))


def rows_compete(model: Any) -> bool:
    """Return whether the rows of a batch affect each other: each expert of NLLB takes a limited number of tokens."""
    return any("moe_eval_capacity_token_fraction" in vars(module) for module in model.modules())


@cache
def _is_plain(kind: Any) -> bool:
    """Return whether a class is one of torch's own, as most are. They treat every input alike."""
    return str(kind.__module__).startswith("torch.nn.")


def _follows_length(module: Any) -> bool:
    """Return whether a module computes differently for longer or shorter inputs."""
    known = vars(module)  # `getattr` of an attribute that a module lacks takes ten times as long
    kinds = known.get("rope_type")
    return (
        # BigBird uses full attention for a short input, and for all inputs after it.
        (known.get("attention_type") == "block_sparse" and hasattr(type(module), "set_attention_type"))
        # Rotary positions whose frequencies change for long inputs.
        or any(_scales(kind) for kind in (kinds.values() if isinstance(kinds, dict) else (kinds,)))
        # Reformer: the first input sets the number of buckets if the config does not.
        or ("num_buckets" in known and hasattr(type(module), "_set_num_buckets"))
    )


def _scales(rope_type: object) -> bool:
    return isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope")


def _grows(module: Any) -> bool:
    """Return whether a module rebuilds its position table for a longer input, or for one of another length."""
    kind = type(module)
    return hasattr(kind, "make_weights") or hasattr(kind, "make_weight") or "cached_sequence_length" in vars(module)


def _is_random(module: Any) -> bool:
    """Return whether a module uses random hashes, as the attention of Reformer and YOSO does."""
    return hasattr(type(module), "_hash_vectors") or vars(module).get("use_expectation") is False


@cache
def _stateless_class(base: type[Any]) -> type[Any]:
    class Stateless(base):  # type: ignore[misc]  # the base is known at run time only
        @wraps(base.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if self.training:
                return super().forward(*args, **kwargs)
            with _fixed_seed(args, kwargs) if _is_random(self) else nullcontext():
                return base.forward(_copy_module(self, base), *args, **kwargs)

        def __reduce_ex__(self, protocol: object) -> Any:
            return _rebuild, (base,), self.__dict__

    # save_pretrained writes the class's name, which transformers must know.
    Stateless.__name__, Stateless.__qualname__, Stateless.__module__ = base.__name__, base.__qualname__, base.__module__
    return Stateless


def _rebuild(base: Any) -> Any:
    return object.__new__(_stateless_class(base))


def _copy_module(module: Any, cls: Any) -> Any:
    """Return a copy of a module, with the modules inside, as a `cls`. It has its own state and shares the weights."""
    made = object.__new__(_without_new_weights(cls))
    made.__dict__.update({name: _copy_value(value) for name, value in vars(module).items()})
    inner = ((name, child and _copy_module(child, type(child))) for name, child in module._modules.items())
    made.__dict__["_modules"] = dict(inner)
    if hasattr(module, "rope_type"):  # frequencies are changed in place
        made.__dict__["_buffers"] = {name: buffer.clone() for name, buffer in module._buffers.items()}
    return made


def _copy_value(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (dict, list, set, PreTrainedConfig)) else value


@cache
def _without_new_weights(cls: type[Any]) -> type[Any]:
    """Return a class that creates no weights when it switches to another kind of attention: it reuses its own."""
    if not hasattr(cls, "set_attention_type"):
        return cls

    class Switching(cls):  # type: ignore[misc]
        def set_attention_type(self, *args: Any, **kwargs: Any) -> None:
            with torch.device("meta"):
                super().set_attention_type(*args, **kwargs)

    return Switching


@contextmanager
def _fixed_seed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Draw the same random numbers each time, and restore the generators afterwards."""
    devices = {value.device for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)}
    graphics = [device for device in devices if device.type == "cuda"]
    with _generator_lock, torch.random.fork_rng(graphics):
        torch.default_generator.manual_seed(_SEED)
        for device in graphics:
            torch.cuda.default_generators[device.index].manual_seed(_SEED)
        yield

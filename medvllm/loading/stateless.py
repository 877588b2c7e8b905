"""Models that change themselves in forward: one object serves all callers, and no call may change another's answer.

What a module would keep of an input, it keeps in a copy that lasts for one call. The copy shares the weights.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, wraps
from typing import Any

import torch
from transformers import PreTrainedConfig

from medvllm.forking import Lock

_SEED = 0
_draws = Lock()  # torch's generator is the whole process's


def make_stateless(model: Any) -> None:
    """Make the modules of a model that would remember an input, or draw random numbers, answer as fresh ones do.

    Their class becomes a subclass of the same name. In training mode they do what they always do.
    """
    done: set[int] = set()
    for module in model.modules():  # the outermost first: a copy of it copies what is inside
        kind: Any = type(module)
        if id(module) in done or _is_plain(kind):
            continue
        if _follows_length(module) or _grows(module) or _is_random(module):
            done.update(map(id, module.modules()))
            module.__class__ = _stateless_class(kind)


def depends_on_length(model: Any) -> bool:
    """Return whether the length of an input, padding included, decides how the model computes."""
    return any(_follows_length(module) for module in model.modules() if not _is_plain(module.__class__))


def rows_compete(model: Any) -> bool:
    """Return whether the rows of a batch compete for room: NLLB's experts take so many tokens of all rows together."""
    return any("moe_eval_capacity_token_fraction" in vars(module) for module in model.modules())


@cache
def _is_plain(kind: Any) -> bool:
    """Return whether modules of that class are torch's own, which are most, and the same for every input."""
    return str(kind.__module__).startswith("torch.nn.")


def _follows_length(module: Any) -> bool:
    """Return whether a module computes in another way when its input is longer or shorter."""
    known = vars(module)  # to ask the module itself for what it lacks takes ten times as long
    kinds = known.get("rope_type")
    return (
        # BigBird's: full attention for a short input, and for all that come later.
        (known.get("attention_type") == "block_sparse" and hasattr(type(module), "set_attention_type"))
        # Rotary positions whose frequencies change beyond a length.
        or any(_scales(kind) for kind in (kinds.values() if isinstance(kinds, dict) else (kinds,)))
        # Reformer's buckets: the first input decides how many there are, where the config does not.
        or ("num_buckets" in known and hasattr(type(module), "_set_num_buckets"))
    )


def _scales(rope_type: object) -> bool:
    return isinstance(rope_type, str) and ("dynamic" in rope_type or rope_type == "longrope")


def _grows(module: Any) -> bool:
    """Return whether a module makes its table of positions anew for a longer input, or for one of another length."""
    kind = type(module)
    return hasattr(kind, "make_weights") or hasattr(kind, "make_weight") or "cached_sequence_length" in vars(module)


def _is_random(module: Any) -> bool:
    """Return whether a module hashes at random: Reformer's and YOSO's attention do."""
    return hasattr(type(module), "_hash_vectors") or vars(module).get("use_expectation") is False


@cache
def _stateless_class(base: type[Any]) -> type[Any]:
    class Stateless(base):  # type: ignore[misc]  # the base is known at run time only
        @wraps(base.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if self.training:
                return super().forward(*args, **kwargs)
            with _fixed_draws(args, kwargs) if _is_random(self) else nullcontext():
                return base.forward(_copied(self, base), *args, **kwargs)

        def __reduce_ex__(self, protocol: object) -> Any:
            return _rebuilt, (base,), self.__dict__

    # save_pretrained writes the class's name, which transformers must know.
    Stateless.__name__, Stateless.__qualname__, Stateless.__module__ = base.__name__, base.__qualname__, base.__module__
    return Stateless


def _rebuilt(base: Any) -> Any:
    return object.__new__(_stateless_class(base))


def _copied(module: Any, cls: Any) -> Any:
    """Return a copy of a module and those inside, as a `cls`: what they know is its own, the weights are shared."""
    made = object.__new__(_switching(cls))
    made.__dict__.update({name: _own(value) for name, value in vars(module).items()})
    inner = ((name, child and _copied(child, type(child))) for name, child in module._modules.items())
    made.__dict__["_modules"] = dict(inner)
    if hasattr(module, "rope_type"):  # frequencies are written where they lie
        made.__dict__["_buffers"] = {name: buffer.clone() for name, buffer in module._buffers.items()}
    return made


def _own(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (dict, list, set, PreTrainedConfig)) else value


@cache
def _switching(cls: type[Any]) -> type[Any]:
    """Return the class whose switch to another kind of attention makes no weights: it takes those that are there."""
    if not hasattr(cls, "set_attention_type"):
        return cls

    class Switching(cls):  # type: ignore[misc]
        def set_attention_type(self, *args: Any, **kwargs: Any) -> None:
            with torch.device("meta"):
                super().set_attention_type(*args, **kwargs)

    return Switching


@contextmanager
def _fixed_draws(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """Draw the same numbers each time, and leave the generators as they were."""
    devices = {value.device for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)}
    graphics = [device for device in devices if device.type == "cuda"]
    with _draws, torch.random.fork_rng(graphics):
        torch.default_generator.manual_seed(_SEED)
        for device in graphics:
            torch.cuda.default_generators[device.index].manual_seed(_SEED)
        yield

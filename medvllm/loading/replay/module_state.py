"""The state of a module in a template. What every new module has is made anew, and is not in the template.

To read eleven empty dicts of hooks for each module would take half of the time of a rebuild.
"""

import copyreg
from collections import OrderedDict
from functools import cache
from typing import Any

import torch

_NEW = vars(torch.nn.Module())  # what a new module has, in this order
_KEPT = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
_HOOKS = tuple(name for name, value in _NEW.items() if type(value) is OrderedDict and name not in _KEPT)
_copy_empty = OrderedDict[str, Any]().copy
_WAYS = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__")

State = tuple[Any, ...]  # the values of the attributes in _KEPT, and a dict of those that only some modules have


def split_state(module: torch.nn.Module) -> State | None:
    """Return what to keep of a module's attributes; None if the module is unusual.

    It is unusual if its class has its own way to be pickled, or if an attribute that is made anew would differ.
    """
    kind: Any = type(module)
    attributes = vars(module)
    if not _is_usual(kind) or [*attributes][: len(_NEW)] != [*_NEW]:
        return None
    for name, new in _NEW.items():
        value = attributes[name]
        if name not in _KEPT and (type(value) is not type(new) or value != new):
            return None
    others = {name: value for name, value in attributes.items() if name not in _NEW}
    return *(attributes[name] for name in _KEPT), others


def set_state(module: torch.nn.Module, state: State) -> None:
    """Give a module its attributes. A template calls it for each module that it makes."""
    attributes = _NEW.copy()
    for name in _HOOKS:
        attributes[name] = _copy_empty()  # in two thirds of the time of OrderedDict()
    training, parameters, buffers, non_persistent, modules, others = state
    attributes["training"], attributes["_parameters"], attributes["_buffers"] = training, parameters, buffers
    attributes["_non_persistent_buffers_set"], attributes["_modules"] = non_persistent, modules
    if others:
        attributes.update(others)
    object.__setattr__(module, "__dict__", attributes)  # the module's own way first looks at the value


@cache
def _is_usual(kind: Any) -> bool:
    return (
        all(getattr(kind, way, None) is getattr(torch.nn.Module, way, None) for way in _WAYS)
        and not hasattr(kind, "__getnewargs_ex__")
        and not hasattr(kind, "__getnewargs__")
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined]
    )

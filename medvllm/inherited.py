"""What a process that this one starts is to know: the names that are registered here alone, and mean nothing there.

It travels in the environment: a worker of multiprocessing, joblib or a shell gets nothing else.
"""

import json
import os
from collections.abc import Iterable

_VARIABLE = "_MEDVLLM_REGISTERED"
_MOST = 64_000  # characters: what does not fit is not told


def tell(names: Iterable[str]) -> None:
    """Have processes that this one starts from now on know these names, beside those that it was told itself."""
    text = json.dumps(sorted({*names, *_TOLD}))
    if len(text) <= _MOST and (text != "[]" or _VARIABLE in os.environ):
        os.environ[_VARIABLE] = text


def is_elsewhere(name: str) -> bool:
    """Return whether the process that started this one had a name registered for itself alone."""
    return name in _TOLD


def _names(text: str) -> frozenset[str]:
    try:
        return frozenset(name for name in json.loads(text) if isinstance(name, str))
    except (ValueError, TypeError, RecursionError):
        return frozenset()


_TOLD = _names(os.environ.get(_VARIABLE, "[]"))

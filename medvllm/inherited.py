"""What other processes are to know of this one: the names that are registered here alone, and are others' there.

It travels in the environment of those that this one starts, and with the registry when that is sent to one.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Meaning(NamedTuple):
    """What a name means in the process that registered it: a version, and a digest of the entry's facts."""

    version: int
    digest: str


Told = tuple[int, Mapping[str, Meaning]]  # the process, and its names

_VARIABLE = "_MEDVLLM_REGISTERED"
_MOST = 100_000  # characters: what does not fit is not told
_told: dict[int, dict[str, Meaning]] = {}  # by process: it may tell anew


def tell(own: Mapping[str, Meaning]) -> None:
    """Have processes that this one starts from now on know these names, beside those that it was told itself."""
    text = json.dumps([told(own), *_told.items()])
    if (own or _told or _VARIABLE in os.environ) and len(text) <= _MOST:
        os.environ[_VARIABLE] = text


def told(own: Mapping[str, Meaning]) -> Told:
    """Return what to send: as many names as there is room for, first those that have a meaning without this process."""
    size, fitting = 0, {}
    for name in sorted(own, key=lambda name: (own[name].version == 1, name)):
        size += len(json.dumps([name, own[name]])) + 2
        if size > _MOST // 2:
            break
        fitting[name] = own[name]
    return os.getpid(), fitting


def hear(sent: Iterable[Told]) -> bool:
    """Take in what other processes have told, in place of what they told before; return whether that is news."""
    heard = {pid: {name: Meaning(*meaning) for name, meaning in names.items()} for pid, names in sent}
    is_news = any(_told.get(pid) != names for pid, names in heard.items())
    _told.update(heard)
    return is_news


def forget(name: str) -> None:
    """Take a name as this process has it from now on: it was registered or unregistered here."""
    for names in _told.values():
        names.pop(name, None)


def elsewhere(name: str) -> Meaning | None:
    """Return what a name means in a process that started this one or sent it the registry, and there alone."""
    return next((names[name] for names in _told.values() if name in names), None)


try:
    hear(json.loads(os.environ.get(_VARIABLE, "[]")))
except (ValueError, TypeError, AttributeError, RecursionError):
    _told.clear()  # not ours

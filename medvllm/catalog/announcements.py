"""Names that a process registers for itself alone, as the processes that it starts or sends the registry to know them.

There such a name must not mean another model. The names travel in the environment of a started process, and in the
pickle of the registry.
"""

import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from typing import NamedTuple


class Meaning(NamedTuple):
    """What a name means in the process that registered it: a version, and a digest of the entry's facts."""

    version: int
    digest: str


Announcement = tuple[int, Mapping[str, Meaning]]  # a process id, and the names of that process

_VARIABLE = "_MEDVLLM_REGISTERED"
_MAX_CHARACTERS = 100_000  # an environment has limits: names beyond it are not announced, and a warning is logged
_received: dict[int, dict[str, Meaning]] = {}  # by process id


def announce(own: Mapping[str, Meaning]) -> None:
    """Put this process's names into its environment, with those that it received; without room for all, the latest."""
    if own or _received or _VARIABLE in os.environ:
        announced: list[Announcement] = [make_announcement(own)]
        room = _MAX_CHARACTERS - len(json.dumps(announced))
        for pid, names in reversed(_received.items()):
            room -= len(json.dumps([pid, names])) + 2
            if room < 0:
                break
            if pid != announced[0][0]:  # of an earlier process with the number of this one
                announced.insert(1, (pid, names))
        os.environ[_VARIABLE] = json.dumps(announced)


def make_announcement(own: Mapping[str, Meaning]) -> Announcement:
    """Return what to send: as many names as fit. Names that mean something without this process come first."""
    size, fitting = 0, {}
    for name in sorted(own, key=lambda name: (own[name].version == 1, name)):
        size += len(json.dumps([name, own[name]])) + 2
        if size > _MAX_CHARACTERS // 2:
            _warn_once()
            break
        fitting[name] = own[name]
    return os.getpid(), fitting


@cache
def _warn_once() -> None:
    import logging  # which the import of the registry does without

    logging.getLogger(__name__).warning(
        "This process registers more names for itself than it can announce to the processes that it starts. There, the "
        "others may mean another model. To share them: register(…, persist=True)"
    )


def receive(sent: Iterable[Announcement]) -> bool:
    """Keep what other processes announce, in place of what they announced before; return whether it is new."""
    received = {pid: {name: Meaning(*meaning) for name, meaning in names.items()} for pid, names in sent}
    is_new = any(_received.get(pid) != names for pid, names in received.items())
    _received.update(received)
    return is_new


def forget_name(name: str) -> None:
    """Drop what was received about a name: this process has registered or unregistered it."""
    for names in _received.values():
        names.pop(name, None)


def meaning_elsewhere(name: str) -> Meaning | None:
    """Return what a name means only in a process that started this one or sent it the registry, or None."""
    return next((names[name] for names in _received.values() if name in names), None)


try:
    receive(json.loads(os.environ.get(_VARIABLE, "[]")))
except (ValueError, TypeError, AttributeError, RecursionError):
    _received.clear()  # somebody else set the variable

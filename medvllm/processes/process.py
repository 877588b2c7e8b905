"""A process among all those that may share a catalogue: on this machine, in containers, and elsewhere."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["alive", "gone", "unknown", "forged"]

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One process. An id says nothing without the namespace that it is of, and without the boot of its machine."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> "Process":
        """Return this process."""
        return cls(*_here(), os.getpid(), _started(os.getpid()) or "")

    @property
    def is_near(self) -> bool:
        """Return whether its id means here what it means there, so that the system can be asked about it."""
        host, *here = _here()
        return [self.boot, self.namespace] == here and (self.boot != "" or self.host == host)

    def state(self, owner: int | None) -> State:
        """Return whether it lives.

        Args:
            owner: The user who says so: nobody but root speaks for another user's process.
        """
        if not self.is_near:
            return "unknown"
        started = _started(self.pid)
        if started is None:
            return _signalled(self.pid)
        if started != self.started:
            return "gone"
        user = _user(self.pid)
        return "alive" if owner in (None, 0, user) or user is None else "forged"

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.is_near else f" on {self.host}")


def _here() -> tuple[str, str, str]:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:  # a system without: its processes are told by the host's name
        boot = namespace = ""
    import socket

    return socket.gethostname(), boot, namespace


def _started(pid: int) -> str | None:
    """Return what tells a process from a later one of the same id; None when that is not to be seen."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _user(pid: int) -> int | None:
    try:
        return (_PROC / str(pid)).stat().st_uid
    except OSError:
        return None


def _signalled(pid: int) -> State:
    """Return what a system says that hides other users' processes, or has no /proc."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # it is there
        return "alive"
    except (OSError, OverflowError):
        return "gone"
    return "alive"

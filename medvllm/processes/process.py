"""A process that shares a catalogue: on this machine, in a container, or on another machine."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["alive", "gone", "unknown", "forged"]

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """One process. A process id means something only within its pid namespace and one boot of its machine."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> "Process":
        """Return this process."""
        return cls(*_machine(), os.getpid(), _start_time(os.getpid()) or "")

    @property
    def is_near(self) -> bool:
        """Whether its id is valid here, so that the system can be asked about it."""
        host, *here = _machine()
        return [self.boot, self.namespace] == here and (self.boot != "" or self.host == host)

    def state(self, owner: int | None) -> State:
        """Return whether the process is alive.

        Args:
            owner: The user who wrote its record. Only root may write the record of another user's process; any other
                such record is "forged".
        """
        if not self.is_near:
            return "unknown"
        started = _start_time(self.pid)
        if started is None:
            return _state_by_signal(self.pid)
        if started != self.started:
            return "gone"
        user = _owner(self.pid)
        return "alive" if owner in (None, 0, user) or user is None else "forged"

    def __str__(self) -> str:
        return f"process {self.pid}" + ("" if self.is_near else f" on {self.host}")


def _machine() -> tuple[str, str, str]:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:  # a system without /proc: the host name must do
        boot = namespace = ""
    import socket

    return socket.gethostname(), boot, namespace


def _start_time(pid: int) -> str | None:
    """Return the start time, which tells a process from a later one with the same id; None if it cannot be read."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _owner(pid: int) -> int | None:
    try:
        return (_PROC / str(pid)).stat().st_uid
    except OSError:
        return None


def _state_by_signal(pid: int) -> State:
    """Return the state on a system that hides other users' processes, or has no /proc."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # it exists
        return "alive"
    except (OSError, OverflowError):
        return "gone"
    return "alive"

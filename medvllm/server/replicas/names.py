"""The names of applications in a cluster. Each says where its server listens, and which process the front is."""

import re
from collections.abc import Iterable
from dataclasses import replace

from medvllm.author import who
from medvllm.processes.process import Process


def own_name(machine: str, place: str) -> str:
    """Return the name of the application of this process. No other front has it, not even the next one at its place.

    Args:
        machine: The address of this machine in the cluster.
        place: Host and port where the server listens.
    """
    front = Process.current()
    return f"{_place_of(machine, place)}-{front.started}-{front.pid}"


def find_left(names: Iterable[str], machine: str, place: str) -> list[str]:
    """Return the applications of earlier fronts at a place that were killed. One that still ends is none of them.

    Args:
        names: The names of the applications in the cluster.
        machine: The address of this machine in the cluster.
        place: Host and port where the servers listened.
    """
    pattern = re.compile(rf"{re.escape(_place_of(machine, place))}-(\d*)-(\d+)")
    return [name for name in names if (found := pattern.fullmatch(name)) and not _is_alive(found[1], int(found[2]))]


def _place_of(machine: str, place: str) -> str:
    return re.sub("[^0-9A-Za-z.]+", "-", f"medvllm-{who()}-{machine}-{place}")


def _is_alive(started: str, pid: int) -> bool:
    """Return whether a process is alive. In containers, a later one often has the same id."""
    return replace(Process.current(), started=started, pid=pid).state(None) == "alive"

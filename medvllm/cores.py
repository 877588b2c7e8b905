"""How many cores of the machine this process may use."""

import os
from functools import cache
from pathlib import Path

from medvllm.cgroup import find_groups, read_lines

_PERIOD = "100000"  # microseconds: what Linux assumes where a group names none


def count_cores() -> int:
    """Return how many cores this process may use: those of its affinity, within the quota of its control groups.

    Only Linux tells either; elsewhere it is all that the machine has.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    available = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = read_quota()
    return available if quota is None else min(available, quota)


@cache  # the queue asks for the cores before each batch
def read_quota(root: Path = Path("/")) -> int | None:
    """Return how many cores the control groups allow, each of which limits those below it; None if none does.

    A part of a core is left out, because a thread that has to stop makes the others wait for it.

    Args:
        root: The folder that holds `proc` and `sys`.
    """
    quotas = []
    for folder, is_unified in find_groups("cpu", root):
        names = ("cpu.max",) if is_unified else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = " ".join(line for name in names for line in read_lines(folder / name)).split()
        quota, period = (*words, _PERIOD)[:2] if words else ("max", _PERIOD)
        if quota.isdecimal() and period.isdecimal() and int(period):  # no quota is "max", or -1
            quotas.append(max(1, int(quota) // int(period)))
    return min(quotas, default=None)

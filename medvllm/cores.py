"""How many cores of the machine this process may use."""

import os


def count_cores() -> int:
    """Return how many cores this process may use. Only Linux tells that; elsewhere it is all that the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

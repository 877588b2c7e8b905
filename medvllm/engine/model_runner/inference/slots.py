"""How many batches run at once."""

import os
import sys


def count_slots(device: str) -> int:
    """Return how many batches may run at once on a device: on a CPU, as many as have threads of their own."""
    torch = sys.modules.get("torch")
    if device != "cpu" or torch is None:
        return 1
    return max(1, len(os.sched_getaffinity(0)) // int(torch.get_num_threads()))

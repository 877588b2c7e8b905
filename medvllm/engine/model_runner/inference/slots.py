"""How many batches run at once."""

import sys

from medvllm.cores import count_cores

_LEAST = 2  # on a CPU: while one batch computes, the inputs of another are made and its numbers are taken


def count_slots(device: str) -> int:
    """Return how many batches may run at once on a device: on a CPU, as many as have threads of their own, or two."""
    torch = sys.modules.get("torch")
    if device != "cpu" or torch is None:
        return 1
    cores = count_cores()
    return max(min(_LEAST, cores), cores // int(torch.get_num_threads()))

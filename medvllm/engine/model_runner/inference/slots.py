"""How many batches run at once."""

import sys

from medvllm.cores import count_cores

_LEAST = 2  # on a CPU: while one batch computes, the inputs of another are made and its numbers are taken


def count_slots(device: str) -> int:
    """Return how many batches may run at once on a device: on a CPU, as many as have threads of their own, or two."""
    if device != "cpu":
        return 1
    cores, torch = count_cores(), sys.modules.get("torch")
    threads = cores if torch is None else int(torch.get_num_threads())  # an engine uses all cores
    return max(min(_LEAST, cores), cores // threads)

"""How many batches run at once."""

from medvllm.cores import count_cores
from medvllm.threads import threads_in_use


def count_slots(device: str) -> int:
    """Return how many batches may run at once on a device: on a CPU, as many as have threads of their own.

    With more, the threads of one batch would wait for those of another: two batches of two threads on two cores took
    16 % more CPU time than one after the other, and no less time.
    """
    return max(1, count_cores() // threads_in_use()) if device == "cpu" else 1

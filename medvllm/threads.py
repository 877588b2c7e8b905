"""How many threads compute a batch on a CPU."""

import logging
import os
import sys
from functools import cache
from pathlib import Path

from medvllm import settings
from medvllm.cgroup import read_lines
from medvllm.cores import count_cores
from medvllm.forking import Forked, register

logger = logging.getLogger(__name__)

# torch reads both. The first number is that of the outermost threads.
_OF_OPENMP = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_OF_TOKENIZERS = "RAYON_NUM_THREADS"
_HAS_SIBLINGS = Path("/sys/devices/system/cpu/smt/active")  # "1" where two processors share a core


class _Process(Forked):
    """What is known of this process.

    Attributes:
        threads: The number that was last counted; None before.
    """

    def __init__(self) -> None:
        self.threads: int | None = None
        self._is_forked = False

    @property
    def is_worker(self) -> bool:
        """Whether it was forked, or started by `multiprocessing`: then others like it share the cores."""
        module = sys.modules.get("multiprocessing.process")
        return self._is_forked or (module is not None and module.parent_process() is not None)

    def after_fork(self, *, is_child: bool) -> None:
        """Remember in a child that it is one."""
        self._is_forked = self._is_forked or is_child


def count_threads() -> int:
    """Return how many threads shall compute a batch.

    It is the number that the program gave to torch or to OpenMP, or else MEDVLLM_THREADS, or else one in a worker
    process, and all cores of this process elsewhere.

    Raises:
        SettingError: MEDVLLM_THREADS is neither auto nor a number.
    """
    wanted, of_torch = settings.THREADS(), _threads_of_torch()
    if (chosen := _chosen_by_program(of_torch)) is not None:
        if wanted not in (None, chosen):
            _warn_of_no_effect(wanted, chosen)
        found = chosen
    elif wanted is not None:
        found = wanted
    else:
        found = 1 if _process.is_worker else min(count_cores(), of_torch or count_cores())
    _process.threads = found
    return found


def threads_in_use() -> int:
    """Return how many threads compute a batch that begins now. Unlike `count_threads`, it takes microseconds."""
    return _threads_of_torch() or _process.threads or count_cores()


def limit_tokenizers() -> None:
    """Let tokenizers use no more threads than a batch does, unless the environment says how many. They start later."""
    if (threads := count_threads()) < count_cores():
        os.environ.setdefault(_OF_TOKENIZERS, str(threads))


@cache
def _warn_of_no_effect(wanted: int, chosen: int) -> None:
    logger.warning(
        "%s=%d has no effect: torch.set_num_threads or %s has chosen %d",
        *(settings.THREADS.name, wanted, " or ".join(_OF_OPENMP), chosen),
    )


def _threads_of_torch() -> int | None:
    count = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return None if count is None else int(count())


def _chosen_by_program(of_torch: int | None) -> int | None:
    """Return the number that the program gave to torch, or to OpenMP by an environment variable; None without one."""
    if of_torch is not None and of_torch not in _defaults():
        return of_torch
    for variable in _OF_OPENMP:
        first = os.environ.get(variable, "").partition(",")[0].strip()
        if first.isdecimal() and int(first):
            return of_torch or int(first)
    return None


def _defaults() -> set[int]:
    """Return the numbers that torch takes when nobody has chosen one: all processors, or one for each core."""
    processors = {os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        processors.add(len(os.sched_getaffinity(0)))
    return processors | ({count // 2 for count in processors} if read_lines(_HAS_SIBLINGS) == ["1"] else set())


_process = _Process()
register(_process)

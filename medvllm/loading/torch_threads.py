"""The threads of torch: how many there are, also after a fork. A child has none of them, but would wait for them."""

import logging

import torch

from medvllm.forking import Forked, register
from medvllm.threads import count_threads, limit_tokenizers

logger = logging.getLogger(__name__)


class _TorchThreads(Forked):
    """The number of torch's threads. It is chosen once in a process, so that the program may change it afterwards."""

    def __init__(self) -> None:
        self._is_set = False

    def set_up(self) -> None:
        """Give torch the threads that MEDVLLM_THREADS or the cores of this process allow.

        torch itself counts the cores of the machine, and not those that a control group allows.

        Raises:
            SettingError: MEDVLLM_THREADS is not a number.
        """
        if self._is_set:
            return
        wanted, found = count_threads(), torch.get_num_threads()
        if wanted != found:
            torch.set_num_threads(wanted)
            logger.info("torch computes with %d threads in place of %d", wanted, found)
        limit_tokenizers()
        self._is_set = True

    def after_fork(self, *, is_child: bool) -> None:
        """Use one thread in a child, because OpenMP there still counts on the threads of the parent."""
        if not is_child:
            return
        self._is_set = True
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            logger.info("torch uses one thread in this process, because it was forked from a process that uses several")


torch_threads = _TorchThreads()
register(torch_threads)

"""The threads of torch after a fork. A child process has none of them, but would wait for them."""

import logging

import torch

from medvllm.forking import Forked, register

logger = logging.getLogger(__name__)


class _TorchThreads(Forked):
    def after_fork(self, *, is_child: bool) -> None:
        """Use one thread in a child, because OpenMP there still counts on the threads of the parent."""
        if is_child and torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            logger.info("torch uses one thread in this process, because it was forked from a process that uses several")


torch_threads = _TorchThreads()
register(torch_threads)

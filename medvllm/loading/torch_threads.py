"""Torch's threads after a fork: a child has none of them, and would wait for them for ever."""

import logging

import torch

from medvllm.forking import Forked, register

logger = logging.getLogger(__name__)


class _TorchThreads(Forked):
    def after_fork(self, *, is_child: bool) -> None:
        """Compute with one thread in a child: OpenMP takes those of its parent for its own."""
        if is_child and torch.get_num_threads() > 1:
            torch.set_num_threads(1)
            logger.info("torch computes with one thread in this process, which was forked from one with several")


torch_threads = _TorchThreads()
register(torch_threads)

"""Trials of a model on a short text of medvllm's own. Their outcome is kept for every caller."""

from collections.abc import Iterator
from contextlib import contextmanager

from medvllm.model_registry import Lease


@contextmanager
def without_callers_settings(lease: Lease) -> "Iterator[None]":
    """Run a block as in a new thread: without the autocast and the default device of the caller's thread."""
    import torch

    device = lease.model.device
    with torch.autocast(device.type, enabled=False), torch.device(device):
        yield

"""One gate for materialising: `from_pretrained` changes process-wide state and must run alone.

While it runs it sets torch's default dtype and swaps `PreTrainedModel.tie_weights` for a function that does nothing.
Two at a time leave weights on `meta`, in a wrong dtype or untied, without an error. Every load of ours takes this
gate; a load that somebody else runs at the same time is noticed afterwards, put right and repeated.
"""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from medvllm.forking import Forked, register

logger = logging.getLogger(__name__)


def foreign_load_running() -> bool:
    """Return whether another thread is inside transformers' swap of `tie_weights` right now."""
    me = threading.get_ident()
    return any(thread != me and _is_swapping(frame) for thread, frame in sys._current_frames().items())


def wait_until_quiet(timeout_s: float) -> None:
    """Return once no other thread is in a load of its own, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while foreign_load_running() and time.monotonic() < deadline:
        time.sleep(0.005)


_FROM_PRETRAINED = PreTrainedModel.from_pretrained.__func__.__code__  # type: ignore[attr-defined]


def _is_swapping(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _FROM_PRETRAINED:
            return True
        frame = frame.f_back
    return False


def _genuine_tie_weights() -> Any:
    """Return the original `tie_weights`, also when an unguarded load elsewhere has it swapped at this moment."""
    if PreTrainedModel.tie_weights.__qualname__ != "PreTrainedModel.tie_weights":
        wait_until_quiet(60.0)
    if PreTrainedModel.tie_weights.__qualname__ != "PreTrainedModel.tie_weights":
        raise ImportError("PreTrainedModel.tie_weights was left replaced by concurrent loads: restart the process")
    return PreTrainedModel.tie_weights


_TIE_WEIGHTS = _genuine_tie_weights()


def restore_tie_weights() -> None:
    """Put the original `tie_weights` back if it was left swapped.

    A load elsewhere that is under way needs its swap; ours is checked and tied again afterwards.
    """
    if PreTrainedModel.tie_weights is _TIE_WEIGHTS or foreign_load_running():
        return
    PreTrainedModel.tie_weights = _TIE_WEIGHTS  # type: ignore[method-assign]
    logger.warning(
        "PreTrainedModel.tie_weights had been left replaced by loads outside the registry that overlapped; put right"
    )


class _Gate(Forked):
    """The lock, and what a load of ours has changed for the whole process while it runs."""

    def __init__(self) -> None:
        # Reentrant: a custom class's from_pretrained may load its parts through the registry.
        self._lock = threading.RLock()
        self._dtype: torch.dtype | None = None  # torch's default, while a load may have another in its place
        register(self)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self._lock:
            outermost = self._dtype is None
            if outermost:
                self._dtype = torch.get_default_dtype()
            try:
                yield
            finally:
                if outermost:
                    self._dtype = None

    def is_owned(self) -> bool:
        """Return whether this thread is inside."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def after_fork(self, *, is_child: bool) -> None:
        """Undo in a child what the load of a thread that it does not have would have undone."""
        if not is_child or self.is_owned():
            return
        if self._dtype is not None:
            torch.set_default_dtype(self._dtype)
        self._lock, self._dtype = threading.RLock(), None
        tqdm.set_lock(threading.RLock())
        if not _is_swapping(sys._getframe()):
            PreTrainedModel.tie_weights = _TIE_WEIGHTS  # type: ignore[method-assign]


_GATE = _Gate()


def retie(model: PreTrainedModel, missing_keys: set[str]) -> None:
    """Tie the model's weights with the original function, and take what that fills from `missing_keys`."""
    _TIE_WEIGHTS(model, missing_keys=missing_keys, recompute_mapping=False)


@contextmanager
def gate() -> Iterator[None]:
    """Let one load of ours through at a time; a swap that others left behind is put right before and after it."""
    with _GATE.entered():
        restore_tie_weights()
        try:
            with _quiet():
                yield
        finally:
            restore_tie_weights()


def is_inside() -> bool:
    """Return whether this thread is inside a load: it must not wait for anything that waits for the gate."""
    return _GATE.is_owned()


@contextmanager
def unreported() -> Iterator[None]:
    """Keep what transformers logs off stderr in this thread, but for errors: what it says is checked, or means nothing.

    The filter is this thread's; those of others stay as they are.
    """
    me = threading.get_ident()

    def other_threads(record: logging.LogRecord) -> bool:
        return record.thread != me or record.levelno >= logging.ERROR

    handlers = list(logging.getLogger("transformers").handlers)
    for handler in handlers:
        handler.addFilter(other_threads)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(other_threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' report off stderr; its bar is shown on a terminal alone, and leaves with the load."""

    def only_on_a_terminal(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*args, **{"disable": None, "leave": False} | kwargs)

    hook = transformers_logging.set_tqdm_hook(only_on_a_terminal)
    try:
        with unreported():
            yield
    finally:
        transformers_logging.set_tqdm_hook(hook)

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

from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)

# Reentrant: a custom model may load its parts through the registry while it is built.
_GATE = threading.RLock()
_FOREIGN_WAIT_S = 60.0


def _genuine_tie_weights() -> Any:
    """Return the original `tie_weights`, also when an unguarded load elsewhere has it swapped at this moment."""
    deadline = time.monotonic() + _FOREIGN_WAIT_S
    while PreTrainedModel.tie_weights.__qualname__ != "PreTrainedModel.tie_weights":
        if time.monotonic() > deadline or not foreign_load_running():
            raise ImportError("PreTrainedModel.tie_weights was left replaced by concurrent loads: restart the process")
        time.sleep(0.01)
    return PreTrainedModel.tie_weights


def foreign_load_running() -> bool:
    """Return whether another thread is inside transformers' swap of `tie_weights` right now."""
    me = threading.get_ident()
    return any(thread != me and _is_swapping(frame) for thread, frame in sys._current_frames().items())


def _is_swapping(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is PreTrainedModel.from_pretrained.__func__.__code__:
            return True
        frame = frame.f_back
    return False


_TIE_WEIGHTS = _genuine_tie_weights()


def restore_tie_weights() -> bool:
    """Put the original `tie_weights` back if it is swapped; return whether it was."""
    if PreTrainedModel.tie_weights is _TIE_WEIGHTS:
        return False
    PreTrainedModel.tie_weights = _TIE_WEIGHTS
    logger.warning(
        "PreTrainedModel.tie_weights had been replaced by a load outside the registry that ran beside another; put right"
    )
    return True


@contextmanager
def gate() -> Iterator[None]:
    """Let one load through at a time, with `tie_weights` genuine when it begins and when it ends."""
    with _GATE:
        deadline = time.monotonic() + _FOREIGN_WAIT_S
        # A load elsewhere that is under way needs its swap: let it end, within reason.
        while PreTrainedModel.tie_weights is not _TIE_WEIGHTS and foreign_load_running() and time.monotonic() < deadline:
            time.sleep(0.005)
        restore_tie_weights()
        try:
            with _quiet():
                yield
        finally:
            if not foreign_load_running():
                restore_tie_weights()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' report off stderr in this thread: what it says is checked and raised instead."""
    me = threading.get_ident()

    def other_threads(record: logging.LogRecord) -> bool:
        return record.thread != me or record.levelno >= logging.ERROR

    def only_on_a_terminal(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*args, **{"disable": None} | kwargs)

    handlers = logging.getLogger("transformers").handlers
    for handler in handlers:
        handler.addFilter(other_threads)
    hook = transformers_logging.set_tqdm_hook(only_on_a_terminal)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
        for handler in handlers:
            handler.removeFilter(other_threads)

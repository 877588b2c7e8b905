"""One load at a time: `from_pretrained` changes process-wide state, so it is not thread-safe.

While it constructs a model it sets torch's default dtype and replaces `PreTrainedModel.tie_weights` by a function that
does nothing. Two constructions at a time leave weights on `meta`, in a wrong dtype or untied, without an error. Every
load of ours takes this lock. Code outside the registry does not, so each result is checked afterwards
(`checks.soundness`), and what overlapping loads leave behind is undone here.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from medvllm import interruption
from medvllm.forking import Forked, register
from medvllm.loading.transformers_output import hide_output

logger = logging.getLogger(__name__)

_IMPORT_WAIT_S = 60.0  # for a construction in another thread, while this module is imported
_LOAD_WAIT_S = 1.0  # for the same, before a load of ours


def _is_replaced() -> bool:
    return PreTrainedModel.tie_weights.__qualname__ != "PreTrainedModel.tie_weights"


def _wait_for_constructions(timeout_s: float) -> None:
    """Wait until no other thread constructs a model: while one does, `tie_weights` is replaced."""
    deadline = time.monotonic() + timeout_s
    while _is_replaced() and time.monotonic() < deadline:
        time.sleep(0.005)


def _find_tie_weights() -> Any:
    """Return the original `tie_weights`."""
    _wait_for_constructions(_IMPORT_WAIT_S)
    if _is_replaced():
        raise ImportError(
            "PreTrainedModel.tie_weights is still replaced by loads that overlapped in other threads.\n"
            "Restart the process, and load models with registry.load_model."
        )
    return PreTrainedModel.tie_weights


_TIE_WEIGHTS = _find_tie_weights()


def tie_weights(model: PreTrainedModel, missing_keys: set[str]) -> None:
    """Tie a model's weights with the original function, and remove the keys that this fills from `missing_keys`."""
    _TIE_WEIGHTS(model, missing_keys=missing_keys, recompute_mapping=False)


def restore_tie_weights() -> None:
    """Restore the original `tie_weights` if loads outside the registry have left it replaced.

    A construction that takes longer than the wait before it loses its replacement. That does it no harm: it ties its
    weights in the constructor, as older versions of transformers did, and again at its end.
    """
    if _is_replaced():
        PreTrainedModel.tie_weights = _TIE_WEIGHTS  # type: ignore[method-assign]
        logger.warning(
            "PreTrainedModel.tie_weights was left replaced by loads outside the registry and has been restored. "
            "from_pretrained is not thread-safe: load models with registry.load_model"
        )


class _FromPretrainedLock(Forked):
    """The lock, and the process-wide state that a load of ours has changed while it holds it."""

    def __init__(self) -> None:
        # Reentrant: the from_pretrained of a custom class may load parts through the registry.
        self._lock = threading.RLock()
        self._default_dtype: torch.dtype | None = None  # torch's, from before the outermost load
        register(self)

    @contextmanager
    def acquire(self) -> Iterator[None]:
        # The loads before this one may take long: a request that is over meanwhile gives up.
        lock = self._lock
        while not lock.acquire(timeout=interruption.LOOK_S if interruption.active.get() else -1):
            interruption.check()
        try:
            is_outermost = self._default_dtype is None
            if is_outermost:
                _wait_for_constructions(_LOAD_WAIT_S)
                restore_tie_weights()
                self._default_dtype = torch.get_default_dtype()
            try:
                yield
            finally:
                if is_outermost:
                    self._default_dtype = None
        finally:
            lock.release()

    def is_owned(self) -> bool:
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def after_fork(self, *, is_child: bool) -> None:
        """Undo in a child what loads of its parent's other threads would have undone at their end."""
        if not is_child or self.is_owned():
            return
        if self._default_dtype is not None:
            torch.set_default_dtype(self._default_dtype)
        self._lock, self._default_dtype = threading.RLock(), None
        tqdm.set_lock(threading.RLock())
        PreTrainedModel.tie_weights = _TIE_WEIGHTS  # type: ignore[method-assign]


_LOCK = _FromPretrainedLock()


@contextmanager
def exclusive_load() -> Iterator[None]:
    """Run one load of ours at a time, without transformers' report on stderr."""
    with _LOCK.acquire(), hide_output():
        yield


def is_held() -> bool:
    """Return whether this thread is inside a load. It must not wait for anything that waits for the lock."""
    return _LOCK.is_owned()

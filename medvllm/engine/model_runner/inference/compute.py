"""Computes the numbers of windows, whatever the engine."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from medvllm import progress
from medvllm.engine.model_runner.inference.call import Call
from medvllm.engine.model_runner.inference.engine_forward import EngineForward
from medvllm.engine.model_runner.inference.part import Part
from medvllm.engine.model_runner.inference.queue import queue
from medvllm.engine.model_runner.inference.torch_forward import TorchForward
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.engine.model_runner.request import current_limits
from medvllm.engines import EngineModel
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TOKENS_AT_ONCE = 100_000  # that are sorted by length; the windows before them are done first


def compute(lease: Lease, part: Part, windows: Sequence[Window]) -> "Iterator[tuple[Window, NDArray[np.float32]]]":
    """Yield each window that has tokens, with its numbers. The first windows come early, but not in order.

    Args:
        lease: The model in use.
        part: What to compute: "tokens" for the hidden states of the encoder, "head_tokens" for the logits of a head
            for each token, or "head_texts" for those of a head that judges whole texts.
        windows: The windows.

    Yields:
        A window, and an array of shape [wanted tokens, size], or of shape [classes] for "head_texts".

    Raises:
        LoadError: The model cannot run, or has no such output.
        RequestError: The model does not read text, or a text contains a token without an embedding.
        OverloadedError: Too many tokens of other calls wait.
        DeadlineError: The deadline of the request has passed.
        RequestCancelledError: The request was cancelled.
    """
    ordered = _order(windows)
    forward = EngineForward(lease, part) if isinstance(lease.model, EngineModel) else TorchForward(lease, part)
    call = Call(forward, ordered, current_limits())
    takes_long = call.tokens > call.budget
    found = queue.run(call)
    for _ in progress.track_items("Running", ordered) if takes_long else ordered:
        yield next(found)


def _order(windows: Sequence[Window]) -> list[Window]:
    """Return the windows with tokens in the order in which they run: the longest first, among so many at a time."""
    ordered: list[Window] = []
    begin = tokens = 0
    for window in windows:
        if window.input_ids:
            ordered.append(window)
            tokens += len(window.input_ids)
        if tokens > _TOKENS_AT_ONCE:
            ordered[begin:] = sorted(ordered[begin:], key=_shortness)
            begin, tokens = len(ordered), 0
    return ordered[:begin] + sorted(ordered[begin:], key=_shortness)


def _shortness(window: Window) -> int:
    return -len(window.input_ids)

"""Computes the numbers of windows, whatever the engine."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from medvllm import progress
from medvllm.engine.model_runner.inference.batch import plan_batches
from medvllm.engine.model_runner.inference.engine_forward import EngineForward
from medvllm.engine.model_runner.inference.part import Part
from medvllm.engine.model_runner.inference.torch_forward import TorchForward
from medvllm.engine.model_runner.reading.windows import Window
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
    """
    forward = EngineForward(lease, part) if isinstance(lease.model, EngineModel) else TorchForward(lease, part)
    batches = [batch for group in _group(windows) for batch in plan_batches(forward, group)]
    for batch in progress.track_items("Running", batches):
        yield from zip(batch, forward.run(batch), strict=True)


def _group(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Yield as many windows with tokens at a time as make full batches."""
    group: list[Window] = []
    tokens = 0
    for window in windows:
        if not window.input_ids:
            continue
        group.append(window)
        tokens += len(window.input_ids)
        if tokens > _TOKENS_AT_ONCE:
            yield group
            group, tokens = [], 0
    yield group

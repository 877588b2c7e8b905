"""Pools the hidden states of windows into one vector for each text, as sentence-transformers does."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medvllm.activations import scale
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.errors import InputTooLongError, RequestError
from medvllm.facts import PoolingMode
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medvllm.engines.vector_modules import Modules


class Pooler:
    """Pools the hidden states of each text, window by window, in any order.

    The vectors of several `modes` are concatenated in their order. The first `skipped` tokens of each text, those of
    its prompt, are left out.

    For a text in several windows, each token counts once, in the window that counts it:

    - "mean", "mean_sqrt_len_tokens", "weightedmean" and "max" are those of the whole text.
    - "lasttoken" is the last token of the last window.
    - "cls" is the mean of the first tokens of the windows.
    """

    def __init__(
        self, modes: PoolingMode | tuple[PoolingMode, ...], windows: Sequence[Window], texts: int, skipped: int = 0
    ) -> None:
        self._modes = (modes,) if isinstance(modes, str) else modes
        self._skipped = skipped
        self._windows = windows
        self._begins: dict[int, int] = {}  # window -> how many tokens of its text are before it
        self._last: dict[int, int] = {}  # text -> its last window
        # For each mode, window -> what it adds to its text, and with which weight.
        self._parts: list[dict[int, tuple[NDArray[np.float32], float]]] = [{} for _ in self._modes]
        tokens = [0] * texts
        for window in windows:
            if 0 < tokens[window.text] <= skipped:
                raise InputTooLongError(
                    f"The prompt of {skipped:,} tokens leaves no room in a window for text {window.text + 1}."
                    "\nUse a shorter prompt.",
                    position=window.text,
                )
            self._begins[id(window)] = tokens[window.text]
            self._last[window.text] = id(window)
            tokens[window.text] += sum(window.counted)

    def add(self, window: Window, hidden: "NDArray[np.float32]") -> None:
        """Add the hidden states of a window, of shape [tokens, size]."""
        import numpy as np

        counted = np.array(window.counted, dtype=np.float32)
        places = counted.cumsum() + np.float32(self._begins[id(window)])  # of each token in its text, from 1
        taken = counted * (places > self._skipped)
        for mode, parts in zip(self._modes, self._parts, strict=True):
            if mode == "max":
                highest = np.where(taken[:, None] == 0, np.float32(-np.inf), hidden).max(0)
                parts[id(window)] = highest, 1.0
            elif mode in ("cls", "lasttoken"):
                if (chosen := self._choose_token(mode, window)) is not None:
                    parts[id(window)] = hidden[chosen].copy(), 1.0
            else:
                weights = taken * places if mode == "weightedmean" else taken
                parts[id(window)] = (hidden * weights[:, None]).sum(0), float(weights.sum())

    def vectors(self, size: int = 0) -> "NDArray[np.float32]":
        """Return the vectors, of shape [texts, size times number of modes].

        Args:
            size: The size of hidden states, if there are no windows to tell it.
        """
        import numpy as np

        return np.concatenate(
            [self._pool(mode, parts, size) for mode, parts in zip(self._modes, self._parts, strict=True)], axis=1
        )

    def _pool(
        self, mode: PoolingMode, parts: "dict[int, tuple[NDArray[np.float32], float]]", size: int
    ) -> "NDArray[np.float32]":
        """Return the vectors of one mode. The windows of a text are added in their order, so that sums are equal."""
        import numpy as np

        size = next((len(given) for given, _ in parts.values()), size)
        sums = np.full((len(self._last), size), -np.inf if mode == "max" else 0, dtype=np.float32)
        weights = np.zeros((len(self._last), 1), dtype=np.float32)
        for window in self._windows:
            if id(window) not in parts:
                continue
            given, weight = parts[id(window)]
            sums[window.text] = np.maximum(sums[window.text], given) if mode == "max" else sums[window.text] + given
            weights[window.text] += np.float32(weight)
        if mode == "max":
            return sums
        divisors: NDArray[np.float32] = weights.clip(min=np.float32(1e-9))
        if mode == "mean_sqrt_len_tokens":
            divisors = np.sqrt(divisors)
        return sums / divisors

    def _choose_token(self, mode: PoolingMode, window: Window) -> int | None:
        """Return the position of the one token that the mode takes from a window, or None if it takes none."""
        length, is_first = len(window.input_ids), self._begins[id(window)] == 0
        if mode == "cls":
            return self._skipped if is_first and self._skipped < length else 0
        is_left_out = is_first and length <= self._skipped
        return None if is_left_out or self._last[window.text] != id(window) else length - 1


def finish_vectors(
    metadata: ModelMetadata, modules: "Modules", vectors: "NDArray[np.float32]"
) -> "NDArray[np.float32]":
    """Return pooled vectors after the modules of the folder and `truncate_dim` and `normalize` of the entry.

    Raises:
        RequestError: `truncate_dim` is larger than the vectors.
    """
    import numpy as np

    behaviour = metadata.behaviour
    vectors = modules.run(metadata.name, vectors, normalize=behaviour.normalize)
    kept = behaviour.truncate_dim
    if kept is not None and kept > vectors.shape[1]:
        raise RequestError(
            f"Model {metadata.name!r} has truncate_dim={kept}, but its vectors have only {vectors.shape[1]} numbers.\n"
            f"Register it without truncate_dim, or with at most: truncate_dim={vectors.shape[1]}",
            model=metadata.name,
        )
    vectors = np.ascontiguousarray(vectors[:, :kept])
    return scale(vectors) if behaviour.normalize else vectors

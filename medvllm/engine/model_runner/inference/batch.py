"""Windows that run through a model together."""

from collections.abc import Iterator, Sequence

from medvllm.engine.model_runner.inference.forward import Forward, Layout
from medvllm.engine.model_runner.reading.windows import Window

_MOST_PADDED = 1.25  # how many times as large as its tokens a padded block may be; beyond, two blocks are faster


class Batch:
    """Windows that a forward runs together.

    Args:
        budget: How many tokens may run together.
        layout: Which windows may run together.

    Attributes:
        windows: The windows, in the order in which they were added.
    """

    def __init__(self, budget: int, layout: Layout) -> None:
        self.windows: list[Window] = []
        self._budget, self._layout = budget, layout
        self._tokens = self._longest = 0

    def add(self, window: Window) -> bool:
        """Add a window if it can run together with the others, and return whether it can. The first one always can."""
        length = len(window.input_ids)
        tokens, longest = self._tokens + length, max(self._longest, length)
        if self.windows and not self._has_room(length, tokens, longest):
            return False
        self.windows.append(window)
        self._tokens, self._longest = tokens, longest
        return True

    def _has_room(self, length: int, tokens: int, longest: int) -> bool:
        if tokens > self._budget or self._layout == "single":
            return False
        if self._layout == "equal" and length != self._longest:
            return False
        block = longest * (len(self.windows) + 1)
        return self._layout == "packed" or (block <= self._budget and block <= _MOST_PADDED * tokens)


def plan_batches(forward: Forward, windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Yield the windows in batches, the longest first, so that those of a batch have similar lengths."""
    batch = Batch(forward.budget, forward.layout)
    for window in sorted(windows, key=lambda window: -len(window.input_ids)):
        if not batch.add(window):
            yield batch.windows
            batch = Batch(forward.budget, forward.layout)
            batch.add(window)
    if batch.windows:
        yield batch.windows

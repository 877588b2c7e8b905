"""Windows that run through a model together."""

from collections.abc import Iterator, Sequence

from medvllm.engine.model_runner.inference.forward import Forward
from medvllm.engine.model_runner.reading.windows import Window


class Batch:
    """Windows that a forward runs together.

    Attributes:
        windows: The windows, in the order in which they were added.
    """

    def __init__(self, forward: Forward) -> None:
        self.windows: list[Window] = []
        self._forward = forward
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
        budget = self._forward.budget
        if tokens > budget:
            return False
        layout = self._forward.layout
        if layout == "packed":
            return True
        if layout == "single" or (layout == "equal" and length != self._longest):
            return False
        return longest * (len(self.windows) + 1) <= budget


def plan_batches(forward: Forward, windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Yield the windows in batches, the longest first, so that those of a batch have similar lengths."""
    batch = Batch(forward)
    for window in sorted(windows, key=lambda window: -len(window.input_ids)):
        if not batch.add(window):
            yield batch.windows
            batch = Batch(forward)
            batch.add(window)
    if batch.windows:
        yield batch.windows

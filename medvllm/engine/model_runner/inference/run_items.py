"""Runs a batch, and finds the window that is to blame if it fails."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from medvllm.engine.model_runner.inference.call import WorkItem
from medvllm.errors import DeviceMemoryError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Answer = tuple[WorkItem, NDArray[np.float32] | Exception]


def run_items(items: Sequence[WorkItem], *, may_halve: bool = True) -> "Iterator[list[Answer]]":
    """Yield the windows of a batch with their numbers, or with the error of one that fails when it runs by itself.

    A batch that needs too much memory runs in two halves first. Windows of calls that have ended are left out.
    """
    try:
        # An error names the model as its call does, so a window by itself runs with the forward of its own call.
        answers = items[0].call.forward.run([item.window for item in items])
        pairs: list[Answer] = list(zip(items, answers, strict=True))
    except Exception as error:
        if len(items) == 1:
            yield [(items[0], error)]
            return
        needs_memory = may_halve and isinstance(error, DeviceMemoryError)
    else:
        yield pairs
        return
    # Outside of the block above: the error of a window must not have that of the batch as its context.
    middle = len(items) // 2
    for part in [items[:middle], items[middle:]] if needs_memory else [[item] for item in items]:
        if left := [item for item in part if not item.call.is_over]:
            yield from run_items(left, may_halve=False)

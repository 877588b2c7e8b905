"""What computes the numbers of windows, whichever engine does it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from medvllm.engine.model_runner.inference.part import Part
from medvllm.engine.model_runner.reading.windows import Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Which windows may run together, and what they cost. "packed": any, and each token counts once. "padded": any, and each
# window counts as long as the longest. "equal": windows of one length. "single": each runs by itself.
Layout = Literal["packed", "padded", "equal", "single"]


class Forward(Protocol):
    """One part of one model on one engine. Windows of equal forwards may run together. It is safe to use in threads."""

    @property
    def model(self) -> str:
        """The name of the model."""
        ...

    @property
    def part(self) -> Part:
        """The part of the model."""
        ...

    @property
    def device(self) -> str:
        """Where it runs, such as "cpu" or "cuda:0"."""
        ...

    @property
    def budget(self) -> int:
        """The number of tokens that run together. A window that is longer runs by itself."""
        ...

    @property
    def layout(self) -> Layout:
        """Which windows may run together. To find out, the model may run on a short text of medvllm's own, once."""
        ...

    def run(self, batch: Sequence[Window]) -> "list[NDArray[np.float32]]":
        """Return the numbers of each window.

        Args:
            batch: Windows with at least one token each, together as `layout` permits.

        Returns:
            For each window an array of shape [wanted tokens, size], or [classes] of a head that judges whole texts.

        Raises:
            LoadError: The model cannot run, or has no such output.
            RequestError: A text contains a token without an embedding.
        """
        ...

    def __eq__(self, other: object) -> bool: ...

    def __hash__(self) -> int: ...

"""How similar vectors are, as the squares of a heat map."""

from collections.abc import Sequence
from typing import NamedTuple

from medvllm.activations import scale

STEPS = 9  # shades


class Square(NamedTuple):
    """Two vectors: their cosine, and the number of its shade, from 0 to STEPS."""

    cosine: float
    shade: int


def similarities(vectors: Sequence[Sequence[float]]) -> list[list[Square]]:
    """Return a row of squares for each vector. Shades run from the least similar pair to the same text."""
    import numpy as np

    units = scale(np.asarray(vectors, dtype=np.float32))
    cosines = units @ units.T
    lowest = float(cosines.min())
    room = max(1 - lowest, 1e-6)
    shades = np.clip(np.rint((cosines - lowest) / room * STEPS), 0, STEPS).astype(int)
    return [
        [Square(float(cosine), int(shade)) for cosine, shade in zip(*row, strict=True)]
        for row in zip(cosines, shades, strict=True)
    ]

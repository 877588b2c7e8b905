"""Whether an engine computes what torch does: batches of several shapes, compared token by token."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medvllm.engines.kinds import engine_version
from medvllm.engines.model import EngineModel
from medvllm.engines.verdict import Verdict
from medvllm.loading.export.parts import Part
from medvllm.loading.export.shortage import is_shortage

# Of the largest number of a batch. In int8, rows of random tokens show only that nothing is broken: whether the labels
# and the neighbours of texts stay the same is compared with texts.
_TOLERANCE = {"float32": 1e-3, "int8": 0.5}
_TIE = 1e-5  # likewise: two numbers that are this close may change places
_LONG = 300
_MIXED = (5, 61, 2, 18, 130, 9, 33)  # tokens of the windows of a batch
_TIMED = ((32, 32), (128, 8), (512, 2))  # tokens and windows of the batches that are timed
_REPEATS = 2


@dataclass(frozen=True)
class Rows:
    """A batch: token ids, and for each token the number of its text in a pair."""

    ids: list[list[int]]
    types: list[list[int]]


def compare(part: Part, model: EngineModel, longest: int, special: Sequence[int]) -> Verdict:
    """Return the verdict on an engine for a part of a model.

    The reference is torch in float32 with plain attention, for each window alone and without padding.

    Args:
        part: The part, in torch.
        model: The same part, in the engine.
        longest: The number of tokens of the longest window.
        special: The ids of the first and the last token of a window.
    """
    version = str(engine_version(model.engine))
    precision = model.precision
    tolerance = _TOLERANCE[model.dtype]
    difference, decided, equal, batches = 0.0, 0, 0, _batches(part, longest, special)

    def refuse(reason: str) -> Verdict:
        return Verdict(model.engine, version, precision, reason, len(batches))

    if precision != model.dtype:
        return refuse(f"it computes in {precision}, not in {model.dtype}")
    for batch in batches:
        shape = f"{len(batch.ids)} x {max(map(len, batch.ids))} tokens"
        try:
            found = model.compute_rows(batch.ids, batch.types)
        except Exception as error:  # a library may raise anything
            if is_shortage(error):
                raise
            return refuse(f"it cannot compute {shape}: {type(error).__name__}")
        wanted = [part.compute([ids], [types]).numpy()[0] for ids, types in zip(batch.ids, batch.types, strict=True)]
        if [rows.shape for rows in found] != [rows.shape for rows in wanted]:
            return refuse(f"it returns arrays of another shape for {shape}")
        if not all(np.isfinite(rows).all() for rows in found):
            return refuse(f"it returns NaN or infinity for {shape}")
        scale = max(float(np.abs(rows).max()) for rows in wanted)
        apart = max(float(np.abs(one - two).max()) for one, two in zip(found, wanted, strict=True))
        difference = max(difference, apart / max(scale, 1e-12))
        if difference > tolerance:
            return refuse(f"its numbers differ by {difference:.1e} of the largest for {shape}")
        for one, two in zip(found, wanted, strict=True):
            chosen = np.take_along_axis(two, one.argmax(-1)[..., None], -1)[..., 0]
            decided += chosen.size
            equal += int((chosen >= two.max(-1) - _TIE * scale).sum())
    if equal < decided and model.dtype == "float32":
        return refuse(f"{decided - equal} of {decided} decisions differ")
    return Verdict(model.engine, version, precision, None, len(batches), difference, equal / decided)


def measure(compute: Callable[[list[list[int]]], Any], part: Part, longest: int) -> float:
    """Return the CPU seconds that a few batches take, the best of some tries."""
    random = np.random.default_rng(0)
    total = 0.0
    for tokens, windows in _TIMED:
        ids = _random_ids(random, part, [min(tokens, longest)] * windows, ())
        compute(ids)
        taken = []
        for _ in range(_REPEATS):
            start = time.process_time()
            compute(ids)
            taken.append(time.process_time() - start)
        total += min(taken)
    return total


def _batches(part: Part, longest: int, special: Sequence[int]) -> list[Rows]:
    """Return batches of the shapes in which a graph may go wrong: the shortest, the longest, with padding, mixed."""
    random = np.random.default_rng(0)
    long = min(_LONG, longest)
    shapes = ([1], [longest], [7, 7, 4], [long, long * 2 // 5 or 1], [min(size, longest) for size in _MIXED])
    found = []
    for lengths in shapes:
        ids = _random_ids(random, part, [min(length, longest) for length in lengths], special)
        types = [[0] * (len(row) // 2) + [part.types - 1 and 1] * (len(row) - len(row) // 2) for row in ids]
        found.append(Rows(ids, types))
    return found


def _random_ids(random: Any, part: Part, lengths: Sequence[int], special: Sequence[int]) -> list[list[int]]:
    """Return rows of token ids, none of which is the padding, with the special tokens around those with room."""
    rows = []
    for length in lengths:
        row = random.integers(0, part.embeddings - 1, length)
        row[row >= part.padding_id] += 1
        ids = row.tolist() if part.embeddings > 1 else [0] * length
        if len(special) == 2 and length > 2:
            ids[0], ids[-1] = special
        rows.append(ids)
    return rows

"""Synthetic notes whose lengths are distributed in several ways."""

import random
from collections.abc import Callable

_TEXT = (
    "Patient denies chest pain fever and cough . Aspirin 75 mg daily ; no evidence of pneumonia on the x ray . "
    "History of hypertension treated with lisinopril , and of asthma . Follow up in two weeks ."
)
DRUGS = ("aspirin", "lisinopril", "metformin", "insulin", "warfarin", "heparin")

# Words of a note, each mostly one token, by the name of the distribution.
DISTRIBUTIONS: dict[str, Callable[[random.Random], float]] = {
    "clinical mix, 5–2,000": lambda chance: min(max(chance.lognormvariate(4.6, 1.1), 3), 1900),
    "short, 5–40": lambda chance: chance.uniform(3, 36),
    "long, 200–2,000": lambda chance: chance.uniform(195, 1900),
    "bimodal, 5–25 and 200–250": lambda chance: chance.choice((chance.uniform(3, 22), chance.uniform(190, 240))),
    "one length, 60": lambda chance: 55,
}


def make_notes(distribution: str, count: int) -> list[str]:
    """Return notes, the same in each call."""
    chance, draw = random.Random(distribution), DISTRIBUTIONS[distribution]
    words = [*_TEXT.split(), *DRUGS]
    return [" ".join(chance.choices(words, k=round(draw(chance)))) for _ in range(count)]


def find_waste(lengths: list[int], batch: int) -> float:
    """Return how many tokens are computed for each one that counts, in padded batches of texts sorted by length."""
    longest_first = sorted(lengths, reverse=True)
    padded = [longest_first[i] * len(longest_first[i : i + batch]) for i in range(0, len(lengths), batch)]
    return sum(padded) / sum(lengths)

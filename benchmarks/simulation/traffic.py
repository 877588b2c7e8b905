"""Requests that arrive at random for models of which some are much more popular than others."""

import random
from itertools import accumulate
from typing import NamedTuple


class Request(NamedTuple):
    """When a request arrives, in seconds, and for which model."""

    at: float
    model: int


def zipf_trace(models: int, rate: float, count: int, seed: int, exponent: float = 1.0) -> list[Request]:
    """Return requests that arrive independently of each other, for models by Zipf's law.

    Args:
        models: How many models there are. Model 0 is the most popular one.
        rate: Requests a second.
        count: How many requests to return.
        seed: Equal seeds give equal requests.
        exponent: The model of rank n is asked for in proportion to 1 / n ** exponent.
    """
    rng = random.Random(seed)
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(models)))
    chosen = rng.choices(range(models), cum_weights=weights, k=count)
    times = accumulate(rng.expovariate(rate) for _ in range(count))
    return [Request(at, model) for at, model in zip(times, chosen, strict=True)]

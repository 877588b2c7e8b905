"""Which replica answers a request: the policies that are compared. The real router of the benchmark uses them too."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Protocol, TypeVar


class View(Protocol):
    """What a router knows about a replica."""

    @property
    def open(self) -> int:
        """Requests that it was given and has not answered."""

    @property
    def held(self) -> int:
        """Models that it has in memory or loads."""

    def holds(self, model: int) -> bool:
        """Return whether it has a model in memory or loads it."""


V = TypeVar("V", bound=View)


class Policy(Protocol):
    """Chooses a replica."""

    def choose(self, model: int, replicas: Sequence[V], rng: random.Random) -> V:
        """Return the replica that answers a request for a model."""


@dataclass(frozen=True)
class Random:
    """Any replica: a balancer that takes turns, without knowledge of models."""

    def choose(self, model: int, replicas: Sequence[V], rng: random.Random) -> V:
        """Return any replica."""
        return rng.choice(replicas)


@dataclass(frozen=True)
class LeastLoaded:
    """The replica with the fewest open requests: a balancer of least connections, without knowledge of models."""

    def choose(self, model: int, replicas: Sequence[V], rng: random.Random) -> V:
        """Return a replica with the fewest open requests."""
        return _least_loaded(replicas, rng)


@dataclass(frozen=True)
class Affinity:
    """A replica that has the model, however long its queue is: multiplexing.

    A model that none has goes to the replica with the fewest models, and stays there.
    """

    def choose(self, model: int, replicas: Sequence[V], rng: random.Random) -> V:
        """Return the holder with the fewest open requests, or the replica with the fewest models."""
        if holders := [replica for replica in replicas if replica.holds(model)]:
            return _least_loaded(holders, rng)
        fewest = min(replica.held for replica in replicas)
        return _least_loaded([replica for replica in replicas if replica.held == fewest], rng)


@dataclass(frozen=True)
class ReplicatedAffinity:
    """A replica that has the model, unless all of these are busy: then one that is not loads it too.

    If every replica is busy, a model stays where it is. Otherwise all replicas would load all models when there is the
    least time for it, and would not recover.

    Attributes:
        limit: How many open requests make a replica busy.
    """

    limit: int

    def choose(self, model: int, replicas: Sequence[V], rng: random.Random) -> V:
        """Return a holder, or the least loaded replica if all holders are busy and it is not."""
        chosen = Affinity().choose(model, replicas, rng)
        if chosen.open < self.limit:
            return chosen
        other = _least_loaded(replicas, rng)
        return other if other.open < self.limit else chosen


@dataclass(frozen=True)
class Hashed:
    """The first replica that is not busy, in an order of the replicas that a hash gives each model.

    It needs no knowledge of models, and a model comes back to where its files and its template are.

    Attributes:
        limit: How many open requests make a replica busy.
    """

    limit: int

    def choose(self, model: int, replicas: Sequence[V], rng: random.Random) -> V:
        """Return the first replica that is not busy, or the first one if all are."""
        ordered = [replicas[number] for number in _order(model, len(replicas))]
        return next((each for each in ordered if each.open < self.limit), ordered[0])


@cache
def _order(model: int, replicas: int) -> tuple[int, ...]:
    """Return the numbers of the replicas as rendezvous hashing sorts them for a model."""
    return tuple(sorted(range(replicas), key=lambda number: sha256(f"{model} {number}".encode()).digest()))


def _least_loaded(replicas: Sequence[V], rng: random.Random) -> V:
    fewest = min(replica.open for replica in replicas)
    return rng.choice([replica for replica in replicas if replica.open == fewest])

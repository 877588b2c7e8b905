"""Runs a trace of requests through simulated replicas."""

import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

import simpy

from benchmarks.simulation.policies import Policy
from benchmarks.simulation.replica import Costs, Machine, Replica
from benchmarks.simulation.traffic import Request


@dataclass
class Outcome:
    """What happened to the requests that count.

    Attributes:
        waits: Seconds from arrival until computing began, of each request.
        answers: Seconds from arrival to the answer, of each request.
        replicas: Which replica answered each request.
        loads: Loads by kind, as in `Tally`.
        answering: The share of the cores' time that computed answers.
        loading: The share that loaded models.
    """

    waits: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    loads: Counter[str] = field(default_factory=Counter)
    answering: float = 0.0
    loading: float = 0.0

    @property
    def loads_per_1000(self) -> float:
        """Loads of any kind for 1,000 requests."""
        return 1000 * (self.loads["reload"] + self.loads["first"]) / len(self.answers)


def simulate(
    trace: Sequence[Request],
    policy: Policy,
    machine: Machine,
    costs: Costs,
    *,
    replicas: int,
    seed: int,
    warm_up: int = 0,
    known: int = 0,
    shared_disk: int | None = None,
) -> Outcome:
    """Return what becomes of the requests of a trace.

    Args:
        trace: The requests, in the order of their arrival.
        policy: Chooses the replica of each request.
        machine: What each replica runs on.
        costs: What the steps take.
        replicas: How many replicas there are.
        seed: Equal seeds give equal outcomes.
        warm_up: How many of the first requests do not count.
        known: The first so many models were loaded once by each replica, before.
        shared_disk: How many reads at once a disk serves that all replicas share; None if each has its own.
    """
    env, rng = simpy.Environment(), random.Random(seed)
    common = None if shared_disk is None else simpy.Resource(env, shared_disk)
    servers = [
        Replica(env, machine, costs, common or simpy.Resource(env, 1), random.Random(rng.random()))
        for _ in range(replicas)
    ]
    for server in servers:
        for model in reversed(range(known)):
            server.remember(model)
    found, start = Outcome(), _Moment()

    def answer(number: int, request: Request, server: Replica, counts: bool) -> Generator[simpy.Event, Any, None]:
        began = yield from server.answer(request.model)
        if counts:
            found.waits.append(began - request.at)
            found.answers.append(env.now - request.at)
            found.replicas.append(number)

    def arrive() -> Generator[simpy.Event, Any, None]:
        numbers = {server: number for number, server in enumerate(servers)}
        for position, request in enumerate(trace):
            yield env.timeout(max(0.0, request.at - env.now))
            if position == warm_up:
                start.note(env, servers)
            server = policy.choose(request.model, servers, rng)
            server.open += 1
            env.process(answer(numbers[server], request, server, position >= warm_up))

    env.process(arrive())
    env.run()
    end = _Moment()
    end.note(env, servers)
    core_s = (end.at - start.at) * machine.cores * replicas
    found.loads = end.loads - start.loads
    found.answering = (end.answering_s - start.answering_s) / core_s
    found.loading = (end.loading_s - start.loading_s) / core_s
    return found


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value below which so many percent of the values are."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


@dataclass
class _Moment:
    """What all replicas had done by a moment."""

    at: float = 0.0
    loads: Counter[str] = field(default_factory=Counter)
    answering_s: float = 0.0
    loading_s: float = 0.0

    def note(self, env: simpy.Environment, servers: Sequence[Replica]) -> None:
        self.at = env.now
        self.loads = sum((server.tally.loads for server in servers), Counter())
        self.answering_s = sum(server.tally.answering_s for server in servers)
        self.loading_s = sum(server.tally.loading_s for server in servers)

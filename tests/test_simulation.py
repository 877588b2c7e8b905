"""The simulation of many replicas: against a formula, known extremes, and itself."""

import math
from itertools import pairwise
from statistics import fmean

import pytest

from benchmarks.simulation.policies import Affinity, Hashed, LeastLoaded, Policy, Random, ReplicatedAffinity
from benchmarks.simulation.replica import Costs, Machine
from benchmarks.simulation.run import Outcome, percentile, simulate
from benchmarks.simulation.traffic import zipf_trace
from tests.support.spread import spread

POLICIES: list[Policy] = [Random(), LeastLoaded(), Affinity(), ReplicatedAffinity(2), Hashed(2)]
COSTS = Costs(answer=(0.08, 0.1, 0.12), reload=(0.02,), first=(0.2,), read=(0.5,))
MACHINE = Machine(room=5, cached=8, cores=2)


def _outcome(policy: Policy, *, replicas: int = 3, seed: int = 1, machine: Machine = MACHINE) -> Outcome:
    trace = zipf_trace(models=20, rate=8.0 * replicas, count=2000, seed=seed)
    return simulate(trace, policy, machine, COSTS, replicas=replicas, seed=seed)


@pytest.mark.parametrize("cores", spread([3, 1], 2))
def test_waits_are_those_of_erlang(cores: int) -> None:
    """Random arrivals, exponential times, a model that is in memory: the mean wait is that of M/M/c."""
    load, count = 0.5, 60_000
    times = tuple(-math.log(1 - (i + 0.5) / 5000) for i in range(5000))  # of mean 1
    costs = Costs(answer=times, reload=(0.0,), first=(0.0,), read=(0.0,))
    trace = zipf_trace(models=1, rate=load * cores, count=count, seed=0)
    outcome = simulate(trace, Random(), Machine(1, 1, cores), costs, replicas=1, seed=0, warm_up=1000)
    offered = load * cores
    last = offered**cores / math.factorial(cores) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(cores)) + last)  # the probability, by Erlang C
    assert fmean(outcome.waits) == pytest.approx(waits / (cores - offered), rel=0.05)
    assert fmean(wait > 0 for wait in outcome.waits) == pytest.approx(waits, rel=0.05)
    assert outcome.answering == pytest.approx(load, rel=0.02)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_each_request_is_answered_once(policy: Policy) -> None:
    """By a replica that there is, after it arrived; no model is loaded more often than it is asked for."""
    outcome = _outcome(policy)
    assert len(outcome.answers) == len(outcome.waits) == len(outcome.replicas) == 2000
    assert all(0 <= wait < answer for wait, answer in zip(outcome.waits, outcome.answers, strict=True))
    assert set(outcome.replicas) == {0, 1, 2}
    assert 20 <= outcome.loads["first"] <= 60 and outcome.loads["first"] + outcome.loads["reload"] < 2000
    busy_s = outcome.loads["first"] * 0.2 + outcome.loads["reload"] * 0.02
    assert outcome.loading / outcome.answering == pytest.approx(busy_s / (2000 * 0.1), rel=0.02)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_equal_seeds_give_equal_outcomes(policy: Policy) -> None:
    assert _outcome(policy) == _outcome(policy) != _outcome(policy, seed=2)


def test_one_replica_leaves_no_choice() -> None:
    """All policies are then the same."""
    outcomes = [_outcome(policy, replicas=1) for policy in POLICIES]
    assert all(one == two for one, two in pairwise(outcomes))


def test_with_room_for_all_models_each_is_loaded_once() -> None:
    """By each replica that gets requests for it; with affinity, by one."""
    roomy = Machine(room=20, cached=20, cores=2)
    assert _outcome(Affinity(), machine=roomy).loads == {"first": 20, "read": 20}
    assert _outcome(Random(), machine=roomy).loads["first"] > 50


def test_affinity_loads_least_and_replication_ends_its_queues() -> None:
    """One model has half of all requests, more than one replica can answer."""
    trace = zipf_trace(models=12, rate=40.0, count=4000, seed=5, exponent=1.5)
    found = {policy: simulate(trace, policy, MACHINE, COSTS, replicas=3, seed=5) for policy in POLICIES}
    affinity, replicated = found[Affinity()], found[ReplicatedAffinity(2)]
    assert affinity.loads_per_1000 < replicated.loads_per_1000 < found[Random()].loads_per_1000
    for wider in (replicated, found[Hashed(2)]):
        assert percentile(wider.waits, 99) < percentile(affinity.waits, 99) / 10


def test_requests_for_one_model_share_its_load() -> None:
    """Ten at one moment: one load, and the last one begins when the cores have answered the others."""
    trace = [request._replace(at=1.0) for request in zipf_trace(models=1, rate=1.0, count=10, seed=0)]
    fixed = Costs(answer=(1.0,), reload=(0.0,), first=(5.0,), read=(7.0,))
    outcome = simulate(trace, Random(), MACHINE, fixed, replicas=1, seed=0)
    assert outcome.loads == {"first": 1, "read": 1}
    assert sorted(outcome.waits) == [12.0, 12.0, 13.0, 13.0, 14.0, 14.0, 15.0, 15.0, 16.0, 16.0]


def test_a_model_in_use_is_not_evicted() -> None:
    """With room for one model, a request for another one waits until the first is answered."""
    trace = [request._replace(at=0.0, model=i) for i, request in enumerate(zipf_trace(1, 1.0, 2, seed=0))]
    fixed = Costs(answer=(10.0,), reload=(0.0,), first=(1.0,), read=(0.0,))
    outcome = simulate(trace, Random(), Machine(room=1, cached=2, cores=4), fixed, replicas=1, seed=0)
    assert outcome.waits == [1.0, 12.0]


def test_a_shared_disk_serves_so_many_reads_at_once() -> None:
    """Four replicas that read a model each, from a disk for one: one after the other."""
    trace = [request._replace(at=0.0, model=i) for i, request in enumerate(zipf_trace(1, 1.0, 4, seed=0))]
    fixed = Costs(answer=(1.0,), reload=(0.0,), first=(0.0,), read=(2.0,))
    for shared, waits in ((None, [2.0] * 4), (1, [2.0, 4.0, 6.0, 8.0]), (2, [2.0, 2.0, 4.0, 4.0])):
        outcome = simulate(trace, Affinity(), MACHINE, fixed, replicas=4, seed=0, shared_disk=shared)
        assert sorted(outcome.waits) == waits


def test_models_that_a_replica_has_loaded_before_are_reloaded() -> None:
    """From their templates, as far as it keeps these, and without the disk as far as its page cache goes."""
    trace = [request._replace(at=float(i), model=i) for i, request in enumerate(zipf_trace(1, 1.0, 10, seed=0))]
    machine = Machine(room=5, cached=6, cores=2, templates=8)
    outcome = simulate(trace, Random(), machine, COSTS, replicas=1, seed=0, known=10)
    assert outcome.loads == {"reload": 8, "first": 2, "read": 4}


def test_popular_models_follow_zipf() -> None:
    """The second one is asked for half as often as the first, and time passes at the rate."""
    trace = zipf_trace(models=1000, rate=50.0, count=50_000, seed=4)
    counts = [sum(request.model == model for request in trace) for model in range(2)]
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert trace[-1].at == pytest.approx(1000, rel=0.05)

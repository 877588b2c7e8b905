"""The policies side by side: 1,000 models on 10 and 100 simulated replicas, with figures that are measured first."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

from benchmarks.cold import measure_loads
from benchmarks.lengths import make_notes
from benchmarks.measure import Series, Table, beside, duration, figure, timed
from benchmarks.simulation import two_replicas
from benchmarks.simulation.policies import Affinity, Hashed, LeastLoaded, Policy, Random, ReplicatedAffinity
from benchmarks.simulation.replica import Costs, Machine
from benchmarks.simulation.run import Outcome, percentile, simulate
from benchmarks.simulation.traffic import zipf_trace
from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry
from medvllm.server.config import ServerConfig

_MODELS, _BUSY = 1000, 0.6
_MACHINE = Machine(room=50, cached=100, cores=4)
_LIMIT = 4 * _MACHINE.cores
_LIMITS = (2, 4, 8, 16, 32, ServerConfig.max_calls + ServerConfig.max_waiting)  # the last: what a server takes at most
_CHOSEN = ReplicatedAffinity(_LIMIT)
_POLICIES: dict[str, Policy] = {
    "random": Random(),
    "least loaded": LeastLoaded(),
    "affinity": Affinity(),
    f"affinity, busy at {_LIMIT}": _CHOSEN,
    f"hashed, busy at {_LIMIT}": Hashed(_LIMIT),
}

# What is shown of an outcome, in one table each.
_Shown = tuple[str, Callable[[Outcome], float], Callable[[float], str]]
_MEDIAN: _Shown = ("p50 of the wait", lambda each: percentile(each.waits, 50), duration)
_SLOWEST: _Shown = ("p99 of the wait", lambda each: percentile(each.waits, 99), duration)
_LOADS: _Shown = ("loads for 1,000 requests", lambda each: each.loads_per_1000, figure)
_SHARE: _Shown = (
    "share of the cores' time that is busy",
    lambda each: each.answering + each.loading,
    lambda share: f"{share:.1%}",
)


def tables(quick: bool) -> list[Table]:
    """Measure a BERT-base, simulate many replicas of it, and compare a simulation with two real servers."""
    costs = _measure_costs(quick)
    return [*_policies(costs, quick), *_settings(costs, quick), *two_replicas.tables(quick)]


def _measure_costs(quick: bool) -> Costs:
    """Return what a BERT-base takes here, with one thread."""
    import torch
    from transformers.utils import logging

    from benchmarks import checkpoints

    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as temporary:
        os.environ[settings.HOME.name] = str(Path(temporary) / "home")
        try:
            folder = checkpoints.bert(Path(temporary) / "model", checkpoints.BERT_BASE)
            loads = measure_loads(folder, 2 if quick else 7)
            answers = _answer_times(folder, 10 if quick else 60)
        finally:
            del os.environ[settings.HOME.name]
    return Costs(answers, loads.reload.values, loads.first.values, loads.read.values)


def _answer_times(folder: Path, count: int) -> tuple[float, ...]:
    """Return the CPU time of passing short notes through a model, as tokens that stand for them."""
    import torch

    registry = ModelRegistry()
    registry.register("model", "custom", model_path=str(folder))
    times = []
    with registry.lease("model") as lease, torch.inference_mode():
        for note in make_notes("short, 5–40", count + 1):
            tokens = torch.ones((1, len(note.split()) + 2), dtype=torch.long)
            times.append(timed(partial(lease.model, input_ids=tokens), time.process_time))
    return tuple(times[1:])


def _run(
    costs: Costs, policy: Policy, replicas: int, quick: bool, *, machine: Machine = _MACHINE, known: int = _MODELS
) -> list[Outcome]:
    """Return the outcomes of one policy with several traces."""
    count = (20_000 if quick else 60_000) * (1 if replicas < 100 else 3)
    rate = _BUSY * machine.cores * replicas / fmean(costs.answer)
    return [
        simulate(
            zipf_trace(_MODELS, rate, count, seed),
            policy,
            machine,
            costs,
            replicas=replicas,
            seed=seed,
            warm_up=count // 2 if known else 0,
            known=known,
        )
        for seed in range(1 if quick else 3)
    ]


def _policies(costs: Costs, quick: bool) -> list[Table]:
    outcomes = {
        f"{replicas} replicas, {name}": _run(costs, policy, replicas, quick)
        for replicas in (10, 100)
        for name, policy in _POLICIES.items()
    }
    peers = {name: f"{name.partition(',')[0]}, random" for name in outcomes if not name.endswith(", random")}
    reading = (
        f"{_MODELS:,} BERT-bases. Each replica has {_MACHINE.cores} cores, memory for {_MACHINE.room} models and a "
        f"page cache for {_MACHINE.cached}. Requests by Zipf's law keep {_BUSY:.0%} of the cores busy with "
        f"answers alone. Measured here: an answer {duration(median(costs.answer))} and a reload "
        f"{duration(median(costs.reload))} of CPU time, and {duration(median(costs.read))} more if the disk is read. "
        "Every replica has loaded each model once before. A wait ends when computing begins, so the load is in it. "
        "Where there is more work than time, waits grow as long as requests come."
    )
    return _shown("Simulated routing", outcomes, peers, (_MEDIAN, _SLOWEST, _LOADS, _SHARE), reading)


def _settings(costs: Costs, quick: bool) -> list[Table]:
    limits = {f"busy at {limit}": _run(costs, ReplicatedAffinity(limit), 10, quick) for limit in _LIMITS}
    rooms = {
        f"memory for {room} models": _run(
            costs, _CHOSEN, 10, quick, machine=replace(_MACHINE, room=room, cached=2 * room)
        )
        for room in (25, 50, 100, 200)
    }
    starts = {
        f"{name}, all replicas have just started": _run(costs, policy, 10, quick, known=0)
        for name, policy in _POLICIES.items()
    }
    base, room = f"busy at {_LIMIT}", f"memory for {_MACHINE.room} models"
    first = next(iter(starts))
    return [
        *_shown("Simulated affinity, 10 replicas", limits, dict.fromkeys(limits.keys() - {base}, base)),
        *_shown(f"Simulated affinity, {base}, 10 replicas", rooms, dict.fromkeys(rooms.keys() - {room}, room)),
        *_shown("Simulated start, 10 replicas", starts, dict.fromkeys(starts.keys() - {first}, first)),
    ]


def _shown(
    title: str,
    outcomes: Mapping[str, list[Outcome]],
    peers: Mapping[str, str],
    shown: tuple[_Shown, ...] = (_SLOWEST, _LOADS),
    reading: str = "",
) -> list[Table]:
    return [
        Table(
            f"{title}: {what}",
            beside({name: Series(tuple(value(each) for each in own)) for name, own in outcomes.items()}, peers),
            "" if number else reading,
            show,
        )
        for number, (what, value, show) in enumerate(shown)
    ]

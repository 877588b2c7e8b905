"""A replica: models in memory, one load at a time, a page cache, and cores that compute."""

import random
from collections import Counter, OrderedDict, deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

_Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Costs:
    """Seconds that were measured. One value of each is drawn whenever it is needed.

    Attributes:
        answer: Computing a request, on one core.
        reload: Loading a model that the process has loaded before, from its template. The files are in the page cache.
        first: Loading a model for the first time in a process. The files are in the page cache.
        read: Reading the files of a model from the disk.
    """

    answer: tuple[float, ...]
    reload: tuple[float, ...]
    first: tuple[float, ...]
    read: tuple[float, ...]


@dataclass(frozen=True)
class Machine:
    """What a replica runs on.

    Attributes:
        room: How many models fit into its budget of memory.
        cached: The files of how many models fit into its page cache; those of the models in memory are among them.
        cores: How many requests it computes at once.
        templates: How many models it remembers, to load them again quickly.
    """

    room: int
    cached: int
    cores: int
    templates: int = 1000


@dataclass
class _Load:
    """A load in progress: what ends it, and the requests that wait for it, the first one included."""

    done: simpy.Event
    leases: int = 1


@dataclass
class Tally:
    """What a replica has done.

    Attributes:
        loads: Loads by kind: "reload", "first", and "read" for those that also read the disk.
        answering_s: Seconds of cores that computed answers.
        loading_s: Seconds of cores that loaded.
    """

    loads: Counter[str] = field(default_factory=Counter)
    answering_s: float = 0.0
    loading_s: float = 0.0


class Replica:
    """One server in a simulation.

    Args:
        env: The simulation.
        machine: What it runs on.
        costs: What its steps take.
        disk: Where it reads files. Replicas may share one.
        rng: Draws the costs.
    """

    def __init__(
        self, env: simpy.Environment, machine: Machine, costs: Costs, disk: simpy.Resource, rng: random.Random
    ) -> None:
        self.open = 0
        self.tally = Tally()
        self._env, self._machine, self._costs, self._disk, self._rng = env, machine, costs, disk, rng
        self._cores = simpy.Resource(env, machine.cores)
        self._loader = simpy.Resource(env, 1)  # loads take turns
        self._leases: OrderedDict[int, int] = OrderedDict()  # of each model in memory, the least recently used first
        self._loads: dict[int, _Load] = {}
        self._reserved = 0  # models about to be in memory
        self._waiting: deque[simpy.Event] = deque()  # loads that wait for memory
        self._pages: OrderedDict[int, None] = OrderedDict()
        self._templates: OrderedDict[int, None] = OrderedDict()

    @property
    def held(self) -> int:
        """Models that it has in memory or loads."""
        return len(self._leases) + len(self._loads)

    def holds(self, model: int) -> bool:
        """Return whether it has a model in memory or loads it."""
        return model in self._leases or model in self._loads

    def remember(self, model: int) -> None:
        """Have a model's template and files as after a load, without a load."""
        _touch(self._templates, model, self._machine.templates)
        _touch(self._pages, model, self._machine.cached)

    def answer(self, model: int) -> Generator[simpy.Event, Any, float]:
        """Answer a request, and return when computing began. The caller has added it to `open`."""
        yield from self._lease(model)
        with self._cores.request() as core:
            yield core
            began = self._env.now
            seconds = self._rng.choice(self._costs.answer)
            self.tally.answering_s += seconds
            yield self._env.timeout(seconds)
        self._leases[model] -= 1
        self.open -= 1
        if not self._leases[model] and self._waiting:
            self._waiting.popleft().succeed()
        return began

    def _lease(self, model: int) -> _Steps:
        """Have a model in memory, and one lease more of it. Requests for one model share its load."""
        if model in self._leases:
            self._leases[model] += 1
            self._leases.move_to_end(model)
            _touch(self._pages, model, self._machine.cached)
        elif (load := self._loads.get(model)) is not None:
            load.leases += 1
            yield load.done
        else:
            self._loads[model] = load = _Load(self._env.event())
            yield from self._reserve()
            yield from self._load(model)
            self._reserved -= 1
            del self._loads[model]
            self._leases[model] = load.leases
            load.done.succeed()

    def _reserve(self) -> _Steps:
        """Reserve the memory for a model. Idle models leave, the least recently used one first."""
        while len(self._leases) + self._reserved >= self._machine.room:
            idle = next((model for model, leases in self._leases.items() if not leases), None)
            if idle is not None:
                del self._leases[idle]
                continue
            freed = self._env.event()
            self._waiting.append(freed)
            yield freed
        self._reserved += 1

    def _load(self, model: int) -> _Steps:
        if model not in self._pages:
            self.tally.loads["read"] += 1
            with self._disk.request() as turn:
                yield turn
                yield self._env.timeout(self._rng.choice(self._costs.read))
        kind = "reload" if model in self._templates else "first"
        self.tally.loads[kind] += 1
        with self._loader.request() as turn, self._cores.request() as core:
            yield turn & core
            seconds = self._rng.choice(self._costs.reload if kind == "reload" else self._costs.first)
            self.tally.loading_s += seconds
            yield self._env.timeout(seconds)
        self.remember(model)


def _touch(used: OrderedDict[int, None], model: int, room: int) -> None:
    """Note a use of a model, and forget the least recently used ones beyond the room."""
    used[model] = None
    used.move_to_end(model)
    if len(used) > room:
        used.popitem(last=False)

"""How many look-ups a second PostgreSQL answers with 100,000 entries, for threads and processes at once.

`python -m benchmarks.catalogue_rates URL WAY COUNT SEED` is one of the processes. It prints when it is ready, waits for
a line, and prints the seconds of each look-up as JSON.
"""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from benchmarks.measure import Series, Table, beside, duration, interleaved, rate, timed
from benchmarks.stored import COUNT, NAMES
from medvllm.catalog import StoredCatalog

if TYPE_CHECKING:
    from benchmarks.measure import Row

_AT_ONCE = (1, 2, 8)
_FIRST, _KNOWN, _PEER = "a name for the first time", "a name that is remembered", "psycopg: a name"
_WAYS = (_FIRST, _KNOWN, _PEER)
_QUERY = (
    "SELECT v.number, v.facts FROM catalog_names n JOIN catalog_versions v ON v.name = n.name AND v.number = n.current "
    "WHERE v.name = %s"
)

Look = Callable[[str], object]


def tables_of(url: str, quick: bool) -> list[Table]:
    """Measure look-ups in a database that has the entries.

    Args:
        url: The database.
        quick: Whether to look up fewer names.
    """
    count, runs = (400, 1) if quick else (1000, 3)
    steps: dict[str, Callable[[], list[float]]] = {}
    for number in _AT_ONCE:
        for way in _WAYS:
            steps[f"{way}, {_counted(number, 'thread')}"] = partial(_in_threads, url, way, number, count)
    for number in _AT_ONCE[1:]:
        for way in _WAYS:
            steps[f"{way}, {_counted(number, 'process')}"] = partial(_in_processes, url, way, number, count)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    slowest: dict[str, list[float]] = {name: [] for name in steps}

    def keep(name: str) -> float:
        wall, *times = steps[name]()
        rates[name].append(len(times) / wall)
        slowest[name].append(sorted(times)[int(0.99 * len(times))])
        return 0.0

    interleaved({name: partial(keep, name) for name in steps}, runs)
    peers = {name: name.replace(name.partition(",")[0], _PEER) for name in steps if not name.startswith(_PEER)}
    reading = (
        f"One of {COUNT:,} names, all threads or processes together. What was found is remembered until the catalogue "
        "changes, so a later look-up of a name asks only whether that is so: one round trip, in one connection of the "
        "process, in which its threads take turns. The server runs on the same machine, and has the rest of its cores."
    )
    return [
        Table("Look-ups a second in PostgreSQL", _rows(rates, peers), reading, rate),
        Table("Look-ups in PostgreSQL: p99 of one", _rows(slowest, peers), "", duration),
    ]


def _rows(values: dict[str, list[float]], peers: dict[str, str]) -> "tuple[Row, ...]":
    return beside({name: Series(tuple(own[1:])) for name, own in values.items()}, peers)


def _counted(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('s') else 's'}"


def _names(count: int, seed: int) -> list[str]:
    return random.Random(seed).sample(NAMES, count)


def _looking(url: str, way: str, names: Sequence[str]) -> Look:
    """Return what looks up one name, ready to be asked."""
    if way == _PEER:
        import psycopg

        connection = psycopg.connect(url, autocommit=True)
        return lambda name: json.loads(connection.execute(_QUERY, (name,)).fetchall()[0][1])
    catalog = StoredCatalog(url)
    if way == _KNOWN:
        for name in names:
            catalog.find(name)
        return catalog.find
    catalog.find(NAMES[0])
    return catalog.find


def _in_threads(url: str, way: str, number: int, count: int) -> list[float]:
    """Return the seconds of all look-ups together, and then of each one."""
    parts = [_names(count, seed) for seed in range(number)]
    names = list(dict.fromkeys(chain.from_iterable(parts)))
    looks = [_looking(url, way, part) for part in parts] if way == _PEER else [_looking(url, way, names)] * number
    barrier = threading.Barrier(number)

    def look_up(look: Look, part: Sequence[str]) -> list[float]:
        barrier.wait()
        return [time.perf_counter(), *(timed(partial(look, name)) for name in part), time.perf_counter()]

    with ThreadPoolExecutor(number) as pool:
        found = list(pool.map(look_up, looks, parts))
    return _together(found)


def _in_processes(url: str, way: str, number: int, count: int) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.catalogue_rates", url, way, str(count)]
    processes = [
        subprocess.Popen([*command, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for seed in range(number)
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return _together([json.loads(process.communicate()[0]) for process in processes])


def _together(found: Sequence[list[float]]) -> list[float]:
    """Return the seconds from the first start to the last end, and then those of each look-up."""
    wall = max(times[-1] for times in found) - min(times[0] for times in found)
    return [wall, *chain.from_iterable(times[1:-1] for times in found)]


def main(url: str, way: str, count: str, seed: str) -> None:
    """Look up names when a line of standard input says so."""
    names = _names(int(count), int(seed))
    look = _looking(url, way, names)
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()  # of one clock for all processes
    times = [timed(partial(look, name)) for name in names]
    print(json.dumps([start, *times, time.perf_counter()]))


if __name__ == "__main__":
    main(*sys.argv[1:])

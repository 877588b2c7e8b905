"""Times that are taken in turn, and the tables that show them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Series:
    """The values of several runs of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)


@dataclass(frozen=True)
class Row:
    """One thing that was measured, and the peer that it is compared with; None for a peer itself."""

    what: str
    series: Series
    peer: Series | None

    @property
    def ratio(self) -> float:
        """The median over the peer's median."""
        return self.series.median / self.peer.median if self.peer else 1.0


@dataclass(frozen=True)
class Table:
    """Rows under a title, how a value is written, and what the rows say."""

    title: str
    rows: tuple[Row, ...]
    reading: str
    show: Callable[[float], str]

    def markdown(self) -> str:
        """Return the table as a section of a page."""
        lines = "".join(self._line(row) for row in self.rows)
        return f"## {self.title}\n\n| what | median | min–max | ratio |\n|---|---|---|---|\n{lines}\n{self.reading}\n"

    def _line(self, row: Row) -> str:
        values = row.series.values
        span = f"{self.show(min(values))} – {self.show(max(values))}"
        ratio = figure(row.ratio) if row.peer else "peer"
        return f"| {row.what} | {self.show(row.series.median)} | {span} | {ratio} |\n"


def interleaved(steps: Mapping[str, Callable[[], float]], runs: int) -> dict[str, Series]:
    """Return each step's values, taken in turn (A B A B …) after one round that does not count."""
    rounds = [{name: step() for name, step in steps.items()} for _ in range(runs + 1)][1:]
    return {name: Series(tuple(values[name] for values in rounds)) for name in steps}


def beside(series: Mapping[str, Series], peers: Mapping[str, str]) -> tuple[Row, ...]:
    """Return the rows of a table; `peers` gives what a row is compared with, and a row without one is a peer."""
    return tuple(Row(name, own, series[peers[name]] if name in peers else None) for name, own in series.items())


def timed(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds on a clock that a call takes; letting go of what it returns is not among them."""
    start = clock()
    result = call()
    seconds = clock() - start
    del result
    return seconds


def duration(seconds: float) -> str:
    """Return seconds as text, in the unit that fits."""
    return _in_units(seconds, {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9})


def rate(per_second: float) -> str:
    """Return a number of calls a second as text."""
    return _in_units(per_second, {"M/s": 1e6, "k/s": 1e3, "/s": 1.0})


def figure(value: float) -> str:
    """Return a number with three figures that count; a small one as a fraction."""
    if 0 < value < 0.1:
        return f"1/{figure(1 / value)}"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _in_units(value: float, units: Mapping[str, float]) -> str:
    unit = next((unit for unit, size in units.items() if value >= size), list(units)[-1])
    return f"{figure(value / units[unit])} {unit}"

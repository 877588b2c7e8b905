"""Loads whose files are not in the page cache, beside warm ones; and a prepared copy that two processes share."""

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure import Series, Table, beside, duration, interleaved, timed
from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry

_NAME = "model"
_READ = "reading the file from its beginning to its end, cold"
_WARM = "the same, warm"
_RELOAD, _COLD_RELOAD = "load again and read each weight, warm", "load again and read each weight, cold"
_FIRST, _COLD_FIRST = "first load and read each weight, warm", "first load and read each weight, cold"
_HASHED = "first load on the machine, which hashes the file, cold"
_PEER = "`BertModel.from_pretrained(folder)` and read each weight, cold"


@dataclass(frozen=True)
class LoadTimes:
    """Seconds of loading a model and reading each of its weights.

    Attributes:
        reload: CPU time of loading again what was evicted.
        first: CPU time of the first load in a process.
        read: How much longer it takes to load again if the files are not in the page cache.
    """

    reload: Series
    first: Series
    read: Series


def tables(quick: bool) -> list[Table]:
    """Measure loads of a BERT-base in float32, then two processes that load it in another dtype."""
    import torch
    from transformers.utils import logging

    from benchmarks import checkpoints

    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as temporary:
        folder = checkpoints.bert(Path(temporary) / _NAME, checkpoints.BERT_BASE)
        return [_cold_and_warm(folder, 2 if quick else 7), _shared_copy(folder, 1 if quick else 5)]


def measure_loads(folder: Path, runs: int) -> LoadTimes:
    """Measure loads of a model in a folder, by a process whose home is set."""
    registry = ModelRegistry()
    steps = _steps(folder, registry)
    wall = interleaved({name: steps[name] for name in (_FIRST, _RELOAD, _COLD_RELOAD)}, runs)
    cpu = interleaved(_steps(folder, registry, time.process_time), runs)
    warm = wall[_RELOAD].median
    return LoadTimes(
        cpu[_RELOAD], cpu[_FIRST], Series(tuple(max(0.0, cold - warm) for cold in wall[_COLD_RELOAD].values))
    )


def _cold_and_warm(folder: Path, runs: int) -> Table:
    from transformers import BertModel

    os.environ[settings.HOME.name] = str(folder.parent / "home")
    try:
        registry = ModelRegistry()

        def peer() -> float:
            registry.clear_cache()  # what it maps would stay in the page cache
            return _when_cold(folder, lambda: _read_weights(BertModel.from_pretrained(folder)))

        def hashed() -> float:
            registry.clear_cache()
            return _hashed_load(folder)

        steps = {**_steps(folder, registry), _HASHED: hashed, _PEER: peer}
        series = interleaved(steps, runs)
    finally:
        del os.environ[settings.HOME.name]
    size = (folder / "model.safetensors").stat().st_size
    peers = dict.fromkeys((name for name in steps if name not in (_READ, _PEER)), _PEER)
    extra = series[_COLD_RELOAD].median - series[_RELOAD].median
    reading = (
        f"The file has {size / 1e6:,.0f} MB. Cold: its pages were dropped from the page cache, and the kernel counted "
        f"that they were read again. The disk adds {duration(extra)} to a reload, which is {_rate_of(size, extra)} "
        f"through the mapping; the file alone is read at {_rate_of(size, series[_READ].median)}. The disk is virtual, "
        "and its host may have the file in its own memory. torch runs 1 thread."
    )
    return Table("Loading BERT-base from the disk and from the page cache", beside(series, peers), reading, duration)


def _rate_of(size: int, seconds: float) -> str:
    """Return bytes a second as text."""
    return f"{size / seconds / 1e6:,.0f} MB/s" if seconds > 0 else "no time that can be measured"


def _steps(
    folder: Path, registry: ModelRegistry, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Callable[[], float]]:
    from benchmarks import checkpoints

    own = checkpoints.dtype_of(folder)

    def load() -> object:
        return _read_weights(registry.load_model(_NAME))

    def again(is_cold: bool) -> float:
        registry.clear_cache()
        return _when_cold(folder, load, clock) if is_cold else _when_clean(load, clock)

    def first(is_cold: bool) -> float:
        registry.register(_NAME, "custom", model_path=str(folder), parameters=own, replace=True)
        return again(is_cold)

    def read(is_cold: bool) -> float:
        registry.clear_cache()
        call = partial(_read_file, folder / "model.safetensors")
        return _when_cold(folder, call, clock) if is_cold else _when_clean(call, clock)

    return {
        _READ: partial(read, True),
        _WARM: partial(read, False),
        _FIRST: partial(first, False),
        _RELOAD: partial(again, False),
        _COLD_FIRST: partial(first, True),
        _COLD_RELOAD: partial(again, True),
    }


def _hashed_load(folder: Path) -> float:
    """Load in a registry and a home that know nothing of the file."""
    from benchmarks import checkpoints

    usual = os.environ[settings.HOME.name]
    with tempfile.TemporaryDirectory() as home:
        os.environ[settings.HOME.name] = home
        try:
            registry = ModelRegistry()
            registry.register(_NAME, "custom", model_path=str(folder), parameters=checkpoints.dtype_of(folder))
            return _when_cold(folder, lambda: _read_weights(registry.load_model(_NAME)))
        finally:
            os.environ[settings.HOME.name] = usual


def _read_weights(model: Any) -> object:
    """Read one number of each page of a model's weights."""
    for parameter in model.parameters():
        parameter.detach().view(-1)[::1024].sum()
    return model


def _read_file(file: Path) -> None:
    with file.open("rb", buffering=0) as stream:
        while stream.read(1 << 22):
            pass


def _when_clean(call: Callable[[], object], clock: Callable[[], float]) -> float:
    gc.collect()
    return timed(call, clock)


def _when_cold(folder: Path, call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of a call that reads a folder whose files are not in the page cache."""
    gc.collect()  # pages that a model still maps would stay
    size = drop_pages(folder)
    before = _read_bytes()
    seconds = timed(call, clock)
    if _read_bytes() - before < size / 2:
        raise RuntimeError(f"{folder} was read from the page cache, so this was no cold load.")
    return seconds


def drop_pages(folder: Path) -> int:
    """Drop the pages of a folder's files from the page cache, and return how many bytes they have."""
    size = 0
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())  # pages that are not written yet would stay
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size += file.stat().st_size
    return size


def _read_bytes() -> int:
    """Return how many bytes this process has had read from a disk."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


_ALONE, _OTHER, _LATER = "the first process, which converts", "a second process at the same time", "a later process"
_OWN = "a process with a home of its own"


def _shared_copy(folder: Path, runs: int) -> Table:
    values: dict[str, list[float]] = {_ALONE: [], _OTHER: [], _LATER: [], _OWN: []}
    for _ in range(runs):
        home = Path(tempfile.mkdtemp(dir=folder.parent))
        both = sorted(_load_in_processes(folder, home, 2))
        values[_ALONE].append(both[1])
        values[_OTHER].append(both[0])
        values[_LATER] += _load_in_processes(folder, home, 1)
        shutil.rmtree(home)
        home = Path(tempfile.mkdtemp(dir=folder.parent))
        values[_OWN] += _load_in_processes(folder, home, 1)
        shutil.rmtree(home)
    series = {name: Series(tuple(own)) for name, own in values.items()}
    return Table(
        "The first load of BERT-base in bfloat16 by processes that share a home",
        beside(series, dict.fromkeys((_ALONE, _OTHER, _LATER), _OWN)),
        "The first row is the slower one of two that begin at the same time, the second row the faster one. The copy "
        "is made once, and each process compares it with its source. Imports are not counted; the files are in the "
        "page cache.",
        duration,
    )


def _load_in_processes(folder: Path, home: Path, number: int) -> list[float]:
    """Return the seconds that the load took in each of several processes that begin it together."""
    environment = os.environ | {settings.HOME.name: str(home)}
    command = [sys.executable, "-m", "benchmarks.cold", str(folder)]
    processes = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    for process in processes:
        assert process.stdout
        process.stdout.readline()  # it has imported all that it needs
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return [float(json.loads(process.communicate()[0])) for process in processes]


def main(arguments: Sequence[str]) -> None:
    """Load a folder in bfloat16 when a line of standard input says so, and print the seconds."""
    import torch
    import transformers

    torch.set_num_threads(1)
    _ = transformers.BertModel  # imported on access
    registry = ModelRegistry()
    registry.register(_NAME, "custom", model_path=arguments[0])
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(timed(partial(registry.load_model, _NAME, dtype="bfloat16"))))


if __name__ == "__main__":
    main(sys.argv[1:])

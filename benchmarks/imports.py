"""Whole processes: importing, listing and help, beside importing transformers.

What is measured is processor time, user and system, from start to exit, as a busy machine changes it least. Bytecode is
cached, as a user has it: PYTHONDONTWRITEBYTECODE is taken out of the environment, and the first round does not count.
"""

import os
import resource
import subprocess
import sys
from functools import partial

from benchmarks.measure import Table, beside, duration, figure, interleaved

_IMPORT = "from medvllm.engine.model_runner import registry, ModelType"
_PROCESSES = {
    "bare Python: `python -c pass`": ("-c", "pass"),
    f"`{_IMPORT}`": ("-c", _IMPORT),
    "the same, and `registry.list_models()`": ("-c", f"{_IMPORT}; registry.list_models()"),
    "`medvllm list`": ("-m", "medvllm.cli", "list"),
    "`medvllm --help`": ("-m", "medvllm.cli", "--help"),
    "`import transformers; from transformers import AutoModel`": (
        "-c",
        "import transformers; from transformers import AutoModel",
    ),
}


def tables(quick: bool) -> list[Table]:
    """Measure fresh processes, from start to exit."""
    steps = {what: partial(_processor_seconds, arguments) for what, arguments in _PROCESSES.items()}
    bare, imported, listed, table, _, peer = steps
    series = interleaved(steps, 2 if quick else 7)
    rows = beside(series, dict.fromkeys((name for name in steps if name != peer), peer))
    over = {name: duration(own.median - series[bare].median) for name, own in series.items()}
    reading = (
        f"Over bare Python, the import costs {over[imported]}, with a listing {over[listed]}, and `medvllm list` "
        f"{over[table]}; the peer costs {over[peer]}.\n"
        f"As whole processes, {figure(series[peer].median / series[table].median)} runs of `medvllm list` fit into one "
        "import of the peer.\n"
        f"Beside bare Python, the import takes {figure(series[imported].median / series[bare].median)} times as long, "
        f"with a listing {figure(series[listed].median / series[bare].median)}, and `medvllm list` "
        f"{figure(series[table].median / series[bare].median)}. These are processor times (user and system) of whole "
        "processes, run in turn, with bytecode caches as a user has them."
    )
    return [Table("Import and listing, whole processes", rows, reading, duration)]


def _processor_seconds(arguments: tuple[str, ...]) -> float:
    """Run a process and return the processor time that it took."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

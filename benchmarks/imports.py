"""Whole processes: importing, listing and help, beside importing transformers."""

import subprocess
import sys
from functools import partial

from benchmarks.measure import Table, beside, duration, figure, interleaved, timed

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
    steps = {what: partial(timed, partial(_run, arguments)) for what, arguments in _PROCESSES.items()}
    bare, imported, listed, table, _, peer = steps
    series = interleaved(steps, 2 if quick else 7)
    rows = beside(series, dict.fromkeys((name for name in steps if name != peer), peer))
    over = {name: duration(own.median - series[bare].median) for name, own in series.items()}
    reading = (
        f"Over bare Python, the import costs {over[imported]}, with a listing {over[listed]}, and `medvllm list` "
        f"{over[table]}; the peer costs {over[peer]}.\n"
        f"As whole processes, {figure(series[peer].median / series[table].median)} runs of `medvllm list` fit into one "
        "import of the peer."
    )
    return [Table("Import and listing, whole processes", rows, reading, duration)]


def _run(arguments: tuple[str, ...]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

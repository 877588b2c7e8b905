"""The default budget for models in main memory."""

from functools import cache
from pathlib import Path

from medvllm.cgroup import find_groups, read_lines

_SHARE = 0.75  # of the machine's memory; the rest is for activations and for other programs


@cache
def default_cpu_budget() -> int:
    """Return the bytes of models to hold in main memory: a share of the machine's memory, or of the cgroup's limit."""
    return int(_SHARE * min(_limits()))


def _limits() -> list[int]:
    limits = [1 << 62]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        total = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemTotal"))
        limits.append(int(total.split()[1]) * 1024)
    for folder, is_unified in find_groups("memory"):
        name = "memory.max" if is_unified else "memory.limit_in_bytes"
        limits += [int(text) for text in read_lines(folder / name) if text.isdecimal()]
    return limits

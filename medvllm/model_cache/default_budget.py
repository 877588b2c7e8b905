"""The default budget for models in main memory."""

from functools import cache
from pathlib import Path

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
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        root, name = (
            (Path("/sys/fs/cgroup"), "memory.max")
            if not controllers
            else (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes")
        )
        if controllers and "memory" not in controllers.split(","):
            continue
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            if folder == root.parent:
                break
            limits += [int(text) for text in _lines(folder / name) if text.isdecimal()]
    return limits


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []

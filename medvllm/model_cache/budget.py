"""How many bytes of models this machine should hold in memory, when nobody says."""

from functools import cache
from pathlib import Path

_SHARE = 0.75  # of a machine's memory; the rest is for what models compute, and for everybody else


@cache
def machine_bytes() -> int:
    """Return the bytes of models that this machine should hold in memory: a share of its own, or of its cgroup's."""
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

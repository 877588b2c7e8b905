"""`python -m benchmarks`: measure all groups or one of them, print what was found, and write docs/benchmarks.md."""

import argparse
import os
import platform
import re
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks import (
    batch,
    cold,
    digests,
    engines,
    entries,
    evictions,
    hits,
    imports,
    inference,
    loads,
    queue,
    reload,
    server,
    stored,
    stored_postgres,
)
from benchmarks.measure import Table
from benchmarks.simulation import comparison
from medvllm import __version__
from medvllm.settings import SETTINGS

GROUPS = {
    "imports": imports.tables,
    "hits": hits.tables,
    "loads": loads.tables,
    "reload": reload.tables,
    "evictions": evictions.tables,
    "cold": cold.tables,
    "inference": inference.tables,
    "engines": engines.tables,
    "digests": digests.tables,
    "entries": entries.tables,
    "stored": stored.tables,
    "postgres": stored_postgres.tables,
    "queue": queue.tables,
    "batch": batch.tables,
    "server": server.tables,
    "simulation": comparison.tables,
}
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_HEADING = """# Benchmarks

Written by `make bench`, or group by group by `make bench ARGS=GROUP`, whatever the figures say.

- Ratio: the median over the median of the named peer, run in turn with it. Below 1 is faster; of what is counted a
  second, above 1.
- Times move with what else the machine does: compare ratios.
"""
_GROUP = re.compile(r"^<!-- group: (\w+) -->\n", re.MULTILINE)


def main() -> None:
    """Run one group or all of them."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("group", nargs="?", choices=GROUPS, help="measure this group alone")
    parser.add_argument(
        "--quick", action="store_true", help="fewer repetitions; print them, and leave the page as it is"
    )
    arguments = parser.parse_args()
    for setting in SETTINGS:
        os.environ.pop(setting.name, None)
    for group in [arguments.group] if arguments.group else GROUPS:
        part = _measure(group, arguments.quick)
        print(part)
        if not arguments.quick:
            write(PAGE, group, part)  # after each one, so that it is not lost with an error of a later group


def write(page: Path, group: str, part: str) -> None:
    """Put the part of a group into the page, in place of what was there."""
    _, *found = _GROUP.split(page.read_text(encoding="utf-8"))
    parts = dict(zip(found[::2], found[1::2], strict=True)) | {group: f"\n{part.strip()}\n\n"}
    text = _HEADING + "".join(f"\n<!-- group: {name} -->\n{parts[name].rstrip()}\n" for name in GROUPS if name in parts)
    page.write_text(text, encoding="utf-8")


def _measure(group: str, quick: bool) -> str:
    print(f"Measuring {group} …", file=sys.stderr, flush=True)
    start = time.perf_counter()
    tables: list[Table] = GROUPS[group](quick)
    print(f"Measured {group} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    measured = (
        f"*{date.today():%Y-%m-%d}: {_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB, "
        f"{platform.system()} {platform.release()}; medvllm {__version__}, Python {platform.python_version()}, "
        f"torch {version('torch')}, transformers {version('transformers')}*\n"
    )
    return "\n".join([measured, *(table.markdown() for table in tables)])


def _processor() -> str:
    names = (line.partition(":")[2].strip() for line in _proc("cpuinfo") if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _proc(name: str) -> list[str]:
    file = Path("/proc") / name
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


if __name__ == "__main__":
    main()

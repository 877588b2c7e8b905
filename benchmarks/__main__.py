"""`python -m benchmarks`: measure everything and write docs/benchmarks.md; with a group's name, print that group."""

import argparse
import os
import platform
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from benchmarks import (
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
from medvllm import __version__
from medvllm.settings import SETTINGS

GROUPS = {
    "imports": imports.tables,
    "hits": hits.tables,
    "loads": loads.tables,
    "reload": reload.tables,
    "evictions": evictions.tables,
    "inference": inference.tables,
    "engines": engines.tables,
    "digests": digests.tables,
    "entries": entries.tables,
    "stored": stored.tables,
    "postgres": stored_postgres.tables,
    "queue": queue.tables,
    "server": server.tables,
}
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def main() -> None:
    """Run one group or all of them."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("group", nargs="?", choices=GROUPS, help="print this group alone, and leave the page as it is")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    arguments = parser.parse_args()
    for setting in SETTINGS:
        os.environ.pop(setting.name, None)
    if arguments.group:
        print(_sections(arguments.group, arguments.quick))
        return
    sections = []
    for group in GROUPS:
        sections.append(_sections(group, arguments.quick))
        print(sections[-1])  # so that what was measured is not lost with an error of a later group
    PAGE.write_text("\n".join([_heading(arguments.quick), *filter(None, sections)]), encoding="utf-8")
    print(f"Wrote {PAGE}", file=sys.stderr)


def _sections(group: str, quick: bool) -> str:
    print(f"Measuring {group} …", file=sys.stderr, flush=True)
    start = time.perf_counter()
    tables: list[Table] = GROUPS[group](quick)
    print(f"Measured {group} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return "\n".join(table.markdown() for table in tables)


def _heading(quick: bool) -> str:
    """Return the page's beginning: what was measured, with what, where and when."""
    command = "python -m benchmarks --quick" if quick else "make bench"
    return (
        f"# Benchmarks\n\nWritten by `{command}` on {date.today():%Y-%m-%d}, whatever the figures say.\n\n"
        f"- Machine: {_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB of memory, "
        f"{platform.system()} {platform.release()}\n"
        f"- Versions: medvllm {__version__}, Python {platform.python_version()}, torch {version('torch')}, "
        f"transformers {version('transformers')}\n"
        "- Ratio: the median over the median of the named peer, run in turn with it. Below 1 is faster, in calls a "
        "second above 1.\n- Times move with what else the machine does: compare ratios.\n"
    )


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

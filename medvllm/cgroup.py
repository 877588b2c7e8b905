"""The control groups of Linux that this process is in. They limit its memory and its processors."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def find_groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of each group, from the process's own upwards, and whether it is of version 2.

    In a container, the name of the own group may be that of the host, and only the root of the tree is there. So a
    folder that is yielded need not exist.

    Args:
        controller: What the groups limit: "memory" or "cpu".
        root: The folder that holds `proc` and `sys`.
    """
    mounted = root / "sys/fs/cgroup"
    for line in read_lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            trees = [mounted, mounted / "unified"]  # the second, where both versions are mounted
        elif controller in controllers.split(","):
            trees = [mounted / controllers, mounted / controller]
        else:
            continue
        for tree in trees:
            own = tree / path.strip("/")
            for folder in (own, *own.parents):
                if folder == tree.parent:
                    break
                yield folder, not controllers


def read_lines(file: Path) -> list[str]:
    """Return the lines of a file; none if it cannot be read."""
    with suppress(OSError):
        return file.read_text().splitlines()
    return []

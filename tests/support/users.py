"""Other users of the machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def another_user(user: int = NOBODY, *groups: int) -> Iterator[None]:
    """Be another user for a while, with no group but its own and `groups`."""
    before = os.getgroups()
    os.setgroups(list(groups))
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def reachable(folder: Path) -> Path:
    """Let others through to a folder of the test's, and return it."""
    for path in (folder, *list(folder.parents)[:-2]):
        path.chmod(path.stat().st_mode | 0o055)
    return folder

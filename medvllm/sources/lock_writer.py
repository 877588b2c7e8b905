"""One writer of a lock file at a time."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from medvllm.file_lock import file_lock

if sys.platform != "win32":
    import fcntl


@contextmanager
def hold_lock_file(file: Path) -> Iterator[None]:
    """Wait until no other process writes a lock file, and keep others out for the duration of a `with` block.

    A file beside it is locked, which works before the lock file exists. The lock file itself is locked too, because a
    container may have mounted only this file: its folder is then another one there.
    """
    target = Path(os.path.realpath(file))
    beside = target.with_name(f".{target.name}.writer")
    with ExitStack() as stack:
        if os.access(target.parent, os.W_OK):
            stack.enter_context(file_lock(beside, setting="MEDVLLM_LOCK_FILE", private=False))
            stack.callback(_unlink, beside)  # a process that waits for it notices
        stack.enter_context(lock_file_itself(target))
        yield


def _unlink(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


@contextmanager
def lock_file_itself(file: Path) -> Iterator[None]:
    """Keep other writers away from a file that exists, if the operating system can."""
    handle = _lock(file)
    try:
        yield
    finally:
        if handle is not None:
            _unlock(handle)


def _lock(file: Path) -> int | None:
    """Return a handle that locks a file. None if there is no file, or the operating system has no such locks."""
    while sys.platform != "win32":
        try:
            handle = os.open(file, os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        except OSError:
            _unlock(handle)
            return None
        _unlock(handle)  # the file was replaced while this process waited
    return None


def _unlock(handle: int) -> None:
    with suppress(OSError):  # closing alone would leave the lock to a child process that was forked meanwhile
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)

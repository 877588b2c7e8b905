"""Folders that appear complete or not at all, and are made by one process and thread at a time."""

import glob
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medvllm.file_lock import file_lock
from medvllm.files import chmod, make_own, own_mode, sync, sync_folder


def atomic_folder(target: Path, *, is_complete: Callable[[Path], bool], fill: Callable[[Path], None]) -> None:
    """Make a folder unless it exists and is complete. Other processes that want to make it wait.

    Args:
        target: The folder. The lock file `<target>.lock` is beside it.
        is_complete: Returns whether an existing folder is complete.
        fill: Writes the files into an empty folder, which is renamed to `target` afterwards.
    """
    with file_lock(target.with_name(f"{target.name}.lock")):
        if is_complete(target):  # another process made it meanwhile
            return
        with work_folder(target) as work:
            fill(work)
            shutil.rmtree(target, ignore_errors=True)
            _publish(work, target)


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """Give an empty private folder beside `target`. It is removed afterwards, unless it was renamed.

    The caller holds the lock of `target`. Folders that a killed process left are removed first.
    """
    for left in target.parent.glob(f"{glob.escape(target.name)}.*"):
        if left.is_dir():
            shutil.rmtree(left)
    work = target.with_name(f"{target.name}.{os.urandom(4).hex()}")
    make_own(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, target: Path) -> None:
    """Rename a finished folder once its files are on the disk, so that a power failure loses nothing."""
    mode = own_mode(target.parent)
    for folder, _, files in os.walk(work, topdown=False):
        for name in files:
            chmod(Path(folder, name), mode & 0o666)
            _sync_file(Path(folder, name))
        chmod(Path(folder), mode)
        sync_folder(Path(folder))
    work.rename(target)
    sync_folder(target.parent)


def _sync_file(file: Path) -> None:
    handle = os.open(file, os.O_RDWR)  # some systems cannot sync a file that is open for reading only
    try:
        sync(handle)
    finally:
        os.close(handle)

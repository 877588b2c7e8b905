"""Folders that are made once: by one process and thread at a time, and whole or not there at all."""

import glob
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from medvllm.file_lock import file_lock
from medvllm.files import chmod, make_own, own_mode, sync, sync_folder


def make(target: Path, *, is_whole: Callable[[Path], bool], fill: Callable[[Path], None]) -> None:
    """Make a folder unless it `is_whole`; `fill` writes its files into an empty one beside it."""
    with file_lock(target.with_name(f"{target.name}.lock")):
        if is_whole(target):  # another process was first
            return
        # Whoever left these died at it: only the holder of the lock makes one.
        for left in target.parent.glob(f"{glob.escape(target.name)}.*"):
            if left.is_dir():
                shutil.rmtree(left)
        work = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        make_own(work)
        try:
            fill(work)
            shutil.rmtree(target, ignore_errors=True)
            _publish(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, target: Path) -> None:
    """Give the finished folder its name; neither the name nor the bytes are lost when the power fails."""
    mode = own_mode(target.parent)
    for folder, _, files in os.walk(work, topdown=False):
        for name in files:
            chmod(Path(folder, name), mode & 0o666)
            _sync(Path(folder, name))
        chmod(Path(folder), mode)
        sync_folder(Path(folder))
    work.rename(target)
    sync_folder(target.parent)


def _sync(file: Path) -> None:
    handle = os.open(file, os.O_RDWR)  # some systems sync no file that is open for reading alone
    try:
        sync(handle)
    finally:
        os.close(handle)

"""Folders that are made once: by one process and thread at a time, and whole or not there at all."""

import glob
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path


def make(target: Path, record: str, *, is_whole: Callable[[Path], bool], fill: Callable[[Path], None]) -> None:
    """Make a folder unless it `is_whole`; `fill` writes its files, `record` among them, into an empty one beside it."""
    from filelock import FileLock

    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if is_whole(target):  # another process was first
            return
        # Whoever left these died at it: only the holder of the lock makes one.
        for left in target.parent.glob(f"{glob.escape(target.name)}.*"):
            if left.is_dir():
                shutil.rmtree(left)
        work = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        work.mkdir(mode=0o755)
        try:
            fill(work)
            shutil.rmtree(target, ignore_errors=True)
            _publish(work, target, record)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, target: Path, record: str) -> None:
    """Give the finished folder its name; neither the name nor the bytes are lost when the power fails."""
    # safetensors lets its owner alone read what it writes; nobody but the owner is to write to it.
    mode = (work / record).stat().st_mode & ~0o022
    for file in (path for path in work.rglob("*") if path.is_file()):
        file.chmod(mode)
        _sync(file)
    for folder in (*(path for path in work.rglob("*") if path.is_dir()), work):
        _sync(folder)
    work.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

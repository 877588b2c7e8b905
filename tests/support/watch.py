"""Which files of a folder are opened, by whatever library: inotify tells, and follows links to where they lead."""

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN, _IN_NONBLOCK, _IN_ISDIR = 0x20, 0o4000, 0x40000000


@contextmanager
def opened(folders: Iterable[Path]) -> Iterator[set[Path]]:
    """Give a set that holds, after the block, each file of the folders and of their subfolders that was opened."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(_IN_NONBLOCK)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    found: set[Path] = set()
    try:
        watched = {}
        for folder in folders:
            for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
                watched[libc.inotify_add_watch(descriptor, str(place).encode(), _IN_OPEN)] = place
        yield found
        while events := _read(descriptor):
            at = 0
            while at < len(events):
                watch, mask, _, length = struct.unpack_from("iIII", events, at)
                name = events[at + 16 : at + 16 + length].rstrip(b"\0").decode()
                if name and not mask & _IN_ISDIR:
                    found.add(watched[watch] / name)
                at += 16 + length
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return b""

"""The SHA-256 of files: large files are hashed side by side, each by one core."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from medvllm.errors import SourceError
from medvllm.sources.fingerprint import Stamp, read_stamp
from medvllm.sources.os_errors import to_source_error

_CHUNK_BYTES = 1 << 20
_WORTH_A_THREAD = 8 << 20  # bytes; a smaller file takes milliseconds
# Two changes within the clock's resolution have equal stamps, and coarse file systems count in steps of 2 s.
_SETTLED_NS = 2_000_000_000
_MAX_THREADS = 4  # as fast as a good disk; more would make a disk with one head slower


class Hashed(NamedTuple):
    """What was read of a file. While it is not settled, it may change without another stamp."""

    stamp: Stamp
    sha256: str
    is_settled: bool


def hash_each(files: Mapping[Path, int], advance: Callable[[int], None]) -> dict[Path, Hashed]:
    """Return the stamp and the SHA-256 of each file.

    Args:
        files: The files, each with its size in bytes.
        advance: Called by several threads, with each number of bytes that were hashed.

    Raises:
        SourceError: A file cannot be read, or changed while it was read.
    """
    is_over = threading.Event()

    def hash_one(file: Path) -> Hashed:
        return _hash(file, advance, is_over)

    order = sorted(files, key=lambda file: files[file], reverse=True)
    n_large = sum(size >= _WORTH_A_THREAD for size in files.values())
    n_threads = min(n_large, len(os.sched_getaffinity(0)), _MAX_THREADS)
    if n_threads < 2:
        return dict(zip(order, map(hash_one, order), strict=True))
    with ThreadPoolExecutor(n_threads) as pool:
        try:
            return dict(zip(order, pool.map(hash_one, order), strict=True))
        finally:
            is_over.set()  # after an error or an interrupt, the other threads need not go on


def _hash(file: Path, advance: Callable[[int], None], is_over: threading.Event) -> Hashed:
    sha256, chunk = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
    before = read_stamp(file)
    try:
        # Not mapped into memory: a file that becomes shorter meanwhile would end the process.
        with file.open("rb", buffering=0) as stream:
            rest = before[2]  # and no further, as a file may grow as fast as it is read
            while rest and (size := stream.readinto(chunk[:rest])) and not is_over.is_set():
                sha256.update(chunk[:size])
                advance(size)
                rest -= size
    except OSError as error:
        raise to_source_error(error, file) from error
    after = read_stamp(file)
    if before != after:
        raise SourceError(f"{file} changed while it was read.\nTry again when no program writes to it.", path=str(file))
    # The machine sets the ctime. The mtime may come from another machine, with a clock that is ahead.
    return Hashed(after, sha256.hexdigest(), time.time_ns() - after[4] > _SETTLED_NS)

"""Files are hashed side by side, and an error in one of them ends it."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from medvllm.errors import SourceError
from medvllm.sources.digest import digest_files
from medvllm.sources.hashing import hash_each

LARGE = 9 << 20  # bytes, worth a thread each


@pytest.fixture
def files(tmp_path: Path) -> dict[Path, int]:
    """Large files, small ones and an empty one, with different content."""
    sizes = {"a": LARGE, "b": LARGE + 1, "c": LARGE + (1 << 20), "d": 3, "e": 0, "f": 1 << 20}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as stream:
            stream.write(name.encode()[:size])
            stream.truncate(size)
    return {tmp_path / name: size for name, size in sizes.items()}


def test_each_file_gets_its_own_digest_and_every_byte_counts(files: dict[Path, int], tmp_path: Path) -> None:
    """As hashlib gives it, whatever the sizes; the progress adds up to the bytes of all files."""
    done: list[int] = []
    found = hash_each(files, done.append)
    expected = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert {file: hashed.sha256 for file, hashed in found.items()} == expected
    assert sum(done) == sum(files.values())
    assert all(hashed.stamp[2] == files[file] for file, hashed in found.items())
    assert list(digest_files(tmp_path, "fedcba")) == [*"abcdef"]
    assert hash_each({}, done.append) == {}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_large_files_are_hashed_at_the_same_time(files: dict[Path, int]) -> None:
    """Two threads are in the middle of a file at once; small files alone need no other thread."""
    meeting, lock = threading.Barrier(2, timeout=60), threading.Lock()
    threads: set[int] = set()

    def advance(_: int) -> None:
        with lock:
            is_new = threading.get_ident() not in threads
            threads.add(threading.get_ident())
            meets = is_new and len(threads) <= 2
        if meets:
            meeting.wait()

    hash_each(files, advance)
    assert len(threads) > 1
    small = {file: size for file, size in files.items() if size < LARGE}
    alone: set[int] = set()
    hash_each(small, lambda _: alone.add(threading.get_ident()))
    assert alone == {threading.get_ident()}


@pytest.mark.parametrize("name", ["a", "c", "d"])
def test_a_file_that_changes_meanwhile_ends_the_whole(files: dict[Path, int], name: str) -> None:
    """The error names it, and nothing goes on reading afterwards."""
    (file,) = (file for file in files if file.name == name)

    def advance(_: int) -> None:
        with file.open("ab") as stream:
            stream.write(b"x")

    with pytest.raises(SourceError, match="changed while it was read"):
        hash_each(files, advance)
    assert {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")} == set()


def test_a_missing_file_and_an_interrupt_end_the_whole(files: dict[Path, int], tmp_path: Path) -> None:
    """An interrupt too: the threads do not read to the end of their files first."""
    with pytest.raises(SourceError, match="has no gone"):
        hash_each({**files, tmp_path / "gone": LARGE}, lambda _: None)
    done: list[int] = []

    def interrupt(size: int) -> None:
        done.append(size)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hash_each(files, interrupt)
    assert len(done) <= len(files)

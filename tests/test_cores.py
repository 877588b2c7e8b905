"""Cores are counted on every system, also where the system tells no process which ones it may use."""

import os
from pathlib import Path

import pytest

from medvllm.cores import count_cores
from medvllm.engine.model_runner.inference.slots import count_slots
from medvllm.sources.hashing import hash_each


def test_a_system_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: all cores count, batches have places, and large files are hashed side by side."""
    monkeypatch.delattr(os, "sched_getaffinity")
    files = {tmp_path / name: 9 << 20 for name in "ab"}
    for file, size in files.items():
        file.write_bytes(bytes(size))
    assert count_cores() == os.cpu_count()
    assert count_slots("cpu") >= 1
    assert len({hashed.sha256 for hashed in hash_each(files, lambda size: None).values()}) == 1


def test_a_process_that_may_use_some_cores_counts_those() -> None:
    """Such as one of a batch job, to which the scheduler gave two of sixty-four."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert count_cores() == 1
    finally:
        os.sched_setaffinity(0, before)

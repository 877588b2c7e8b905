"""Long work leaves nothing behind: memory flat, no thread, no file descriptor."""

import gc
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from tests.support import tiny


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _work(registry: ModelRegistry, names: list[str], seed: int, seconds: float) -> int:
    """Do whatever a user may do, at random; return how often."""
    chance, until, done = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        name, done = chance.choice(names), done + 1
        dtype = chance.choice(["float32", "float32", "bfloat16"])
        match chance.randrange(6):
            case 0:
                registry.load_model(name, dtype=dtype, keep_alive=chance.choice([None, 0, 0.2, "10m"]))
            case 1:
                with registry.lease(name, dtype=dtype) as lease, torch.inference_mode():
                    lease.model(**lease.tokenizer("fever and pain", return_tensors="pt"))
            case 2:
                ModelRunner(name, registry=registry).embed(["Patient denies fever"])
            case 3:
                registry.plan(name, dtype=dtype)
                registry.loaded_models()
            case 4:
                registry.evict(name)
            case 5:
                registry.load_model(name, use_cache=False)
    return done


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_minutes_of_random_work_leave_nothing_behind(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty models, eight threads, room for ten: what the process has after nine minutes it had after one."""
    names = [f"m{i}" for i in range(30)]
    for i, name in enumerate(names):
        folder = tiny.bert_encoder(tmp_path / name, seed=i)
        registry.register(name, "clinical", model_path=str(folder), do_lower_case=False, pooling="mean")
    with registry.lease("m0") as lease:
        size = lease.size_bytes
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={10 * size}B")

    def phase(seconds: float) -> float:
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda seed: _work(registry, names, seed, seconds), range(8)))
        assert min(done) > 0
        gc.collect()
        return _rss_mb()

    before = phase(60)
    threads, descriptors = threading.active_count(), _descriptors()
    peaks = [phase(60) for _ in range(9)]
    registry.clear_cache()
    time.sleep(1)
    assert threading.active_count() <= threads and _descriptors() <= descriptors + 2
    # The allocator keeps what it once had; what grows with the work would grow nine times.
    assert max(peaks[-3:]) < 1.1 * max(before, *peaks[:3])
    figures = registry.statistics()
    assert figures.misses == figures.loads + figures.failed_loads and figures.failed_loads == 0
    assert sum(use.cached_bytes + use.held_bytes + use.reserved_bytes for use in figures.devices.values()) == 0

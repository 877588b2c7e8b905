"""Cores and threads: as many as the process may use, on every system and in containers."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from medvllm.cores import count_cores, read_quota
from medvllm.engine.model_runner.inference.slots import count_slots
from medvllm.errors import SettingError
from medvllm.sources.hashing import hash_each
from medvllm.threads import count_threads
from tests.support import tiny


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


_V2 = "0::/{}\n"
_V1 = "12:cpuset:/{0}\n5:cpu,cpuacct:/{0}\n4:memory:/{0}\n1:name=systemd:/{0}\n"

# What /proc/self/cgroup says, the files of the groups under /sys/fs/cgroup, and the whole cores that they allow.
_LAYOUTS: dict[str, tuple[str, Mapping[str, str], int | None]] = {
    "no control groups": ("", {}, None),
    "docker, version 2": (_V2.format(""), {"cpu.max": "200000 100000"}, 2),
    "docker, version 2, the name of the host": (
        _V2.format("system.slice/docker-4f.scope"),
        {"cpu.max": "300000 100000"},
        3,
    ),
    "docker, version 2, no quota": (_V2.format(""), {"cpu.max": "max 100000"}, None),
    "docker, version 1": (
        _V1.format("docker/4f"),
        {"cpu,cpuacct/cpu.cfs_quota_us": "400000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        4,
    ),
    "docker, version 1, by one name": (
        _V1.format("docker/4f"),
        {"cpu/docker/4f/cpu.cfs_quota_us": "50000", "cpu/docker/4f/cpu.cfs_period_us": "25000"},
        2,
    ),
    "docker, version 1, no quota": (
        _V1.format(""),
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        None,
    ),
    "a part of a core": (_V2.format(""), {"cpu.max": "50000 100000"}, 1),
    "two cores and a part": (_V2.format(""), {"cpu.max": "290000 100000"}, 2),
    "a slice that allows less than its scope": (
        _V2.format("user.slice/user-1.slice/job.scope"),
        {
            "user.slice/cpu.max": "max 100000",
            "user.slice/user-1.slice/cpu.max": "300000 100000",
            "user.slice/user-1.slice/job.scope/cpu.max": "800000 100000",
        },
        3,
    ),
    "a pod of Kubernetes": (
        _V1.format("kubepods/burstable/pod7/4f"),
        {
            "cpu,cpuacct/kubepods/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/kubepods/burstable/pod7/cpu.cfs_quota_us": "250000",
            "cpu,cpuacct/kubepods/burstable/pod7/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/kubepods/burstable/pod7/4f/cpu.cfs_quota_us": "600000",
        },
        2,
    ),
    "both versions": (_V1.format("") + _V2.format("job"), {"unified/job/cpu.max": "100000 50000"}, 2),
    "a period of its own": (_V2.format(""), {"cpu.max": "30000 10000"}, 3),
    "no period": (_V2.format(""), {"cpu.max": "200000"}, 2),
    "outside of its own namespace": (_V2.format("../other"), {"cpu.max": "200000 100000"}, 2),
    "another controller": (_V1.format(""), {"memory/cpu.cfs_quota_us": "100000", "cpuset/cpu.max": "1 1"}, None),
    "a damaged file": (_V2.format(""), {"cpu.max": "what 0"}, None),
    "a period of nothing": (_V2.format(""), {"cpu.max": "100000 0"}, None),
}


@pytest.mark.parametrize("layout", _LAYOUTS)
def test_the_quota_of_control_groups_counts(tmp_path: Path, layout: str) -> None:
    """Of both versions, of the group and of those above it, in whole cores, and at least one."""
    groups, files, cores = _LAYOUTS[layout]
    contents = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in contents.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert read_quota(tmp_path) == cores


def _run(code: str, **environment: str) -> list[str]:
    """Run a program in a fresh process and return the lines that it prints."""
    kept = {name: text for name, text in os.environ.items() if not name.endswith("_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


_COUNT = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from medvllm.threads import count_threads, limit_tokenizers
from medvllm.engine.model_runner.inference.slots import count_slots
limit_tokenizers()
print(count_threads(), count_slots("cpu"), os.environ.get("RAYON_NUM_THREADS"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, count_cores()),
        ({"MEDVLLM_THREADS": "auto"}, count_cores()),
        ({"MEDVLLM_THREADS": "1"}, 1),
        ({"MEDVLLM_THREADS": "7"}, 7),
        ({"OMP_NUM_THREADS": "1,2"}, 1),
        ({"MKL_NUM_THREADS": "3"}, 3),
    ],
)
def test_threads_are_counted_without_torch(environment: dict[str, str], threads: int) -> None:
    """An engine computes with them, as many batches run at once as there are cores for them, and tokenizers follow."""
    slots = max(1, count_cores() // threads)
    tokenizers = str(threads) if threads < count_cores() else None
    assert _run(_COUNT, **environment) == [f"{threads} {slots} {tokenizers} False"]


def test_a_program_that_has_chosen_its_threads_is_told_that_the_setting_has_no_effect() -> None:
    """In one line, however often the threads are counted."""
    lines = _run(_COUNT, MEDVLLM_THREADS="7", OMP_NUM_THREADS="3", RAYON_NUM_THREADS="5")
    assert lines == [
        "MEDVLLM_THREADS=7 has no effect: torch.set_num_threads or OMP_NUM_THREADS or MKL_NUM_THREADS has chosen 3",
        f"3 {max(1, count_cores() // 3)} 5 False",
    ]


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_a_number_of_threads_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """It is refused, with the line that leads out."""
    monkeypatch.setenv("MEDVLLM_THREADS", text)
    with pytest.raises(SettingError, match=f"'{text}'.*neither auto nor a whole number.*\nUnset it"):
        count_threads()


# Loads a model in a thread that torch does not know, as servers do.
_LOAD = """
import os, threading, torch
from medvllm.model_registry import registry
def load():
    registry.load_model({!r})
    print(torch.get_num_threads(), os.environ["RAYON_NUM_THREADS"])
thread = threading.Thread(target=load)
thread.start()
thread.join()
torch.set_num_threads(4)
registry.clear_cache()
load()
pid = os.fork()
if pid == 0:
    load()
    os._exit(0)
os.waitpid(pid, 0)
"""


@pytest.mark.slow
def test_torch_computes_with_the_threads_of_the_setting(tmp_path: Path) -> None:
    """Until the program chooses another number, and with one in a forked child."""
    folder = str(tiny.bert_encoder(tmp_path / "m"))
    threads = count_cores() + 2
    tokenizers = "1"  # the environment has said so before
    lines = _run(_LOAD.format(folder), MEDVLLM_THREADS=str(threads), RAYON_NUM_THREADS=tokenizers)
    assert lines == [f"{threads} 1", "4 1", "1 1"]


def test_the_cores_of_the_process_count_and_not_those_that_torch_has_counted() -> None:
    """Here one is left to a process in which torch has counted all. What the program gives to torch is kept."""
    chosen = (os.cpu_count() or 1) + 3
    code = (
        "import os, torch\n"
        "from medvllm.threads import count_threads\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(count_threads())\n"
        "os.environ['MEDVLLM_THREADS'] = '2'\n"
        "print(count_threads())\n"
        f"torch.set_num_threads({chosen})\n"
        "print(count_threads())\n"
    )
    assert _run(code) == ["1", "2", str(chosen)]


def test_worker_processes_share_the_cores() -> None:
    """One that is forked or started by multiprocessing has one thread: it does not know how many there are."""
    start = "import multiprocessing, os\nfrom medvllm.threads import count_threads\n"
    pool = (
        "with multiprocessing.get_context('spawn').Pool(1) as pool:\n    print(pool.apply(count_threads), flush=True)\n"
    )
    fork = "if pid := os.fork():\n    os.waitpid(pid, 0)\nprint(count_threads(), flush=True)\n"
    assert _run(start + pool + fork) == ["1", "1", str(count_cores())]
    assert _run(start + pool, MEDVLLM_THREADS="2") == ["2"]

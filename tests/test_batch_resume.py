"""A batch that is stopped at any moment goes on: what is written is what an undisturbed run writes."""

import json
import multiprocessing
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.batch import processes as batch_processes
from medvllm.engine.model_runner.batch.processes import LocalProcesses, explain_end
from medvllm.engine.model_runner.batch.summary import BatchSummary, read_status
from medvllm.engine.model_runner.batch.worker import Job
from medvllm.errors import LoadError
from tests.support import tiny
from tests.support.console import command
from tests.support.driver import Driver
from tests.support.waiting import wait_until
from tests.test_batch import LABELS, bad_rows, contents, lines

SOME, MANY = 4, 20  # kills: in every run, and in the slow one; docs/batch.md says so
PARTS, ROWS = 24, 12
ADVICE = (
    'In a script, call batch() below: if __name__ == "__main__":\n'
    "To see where a process crashes, set: PYTHONFAULTHANDLER=1"
)
IMPORTS = """
import torch
from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.batch import batch_run
import medvllm.loading, medvllm.sources, pyarrow.parquet, filelock
import transformers.models.bert.modeling_bert
from transformers import BertForTokenClassification
torch.set_num_threads(1)
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    driver = Driver(IMPORTS)
    yield driver
    driver.stop()


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path]:
    """A model, and a file in which some rows cannot be answered."""
    model = tiny.bert_token_classifier(tmp_path / "model", LABELS)
    texts = ({"id": at, "text": f"Patient {at} was given aspirin for fever. " * 4} for at in range(PARTS * ROWS))
    rows = (b"{" if row["id"] == 100 else row for row in texts)
    return model, lines(tmp_path / "notes.jsonl", rows)


def count_parts(out: Path) -> int:
    return len(list((out / "parts").glob("part-*")))


def run(model: Path, file: Path, out: Path, **options: Any) -> BatchSummary:
    usual: dict[str, Any] = {"task": "ner", "rows_per_part": ROWS}
    return ModelRunner(model).batch(file, out, **usual | options)


@pytest.mark.parametrize(
    "kills",
    [pytest.param(SOME, id="some"), pytest.param(MANY, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_a_batch_survives_kills_at_random_moments(
    tmp_path: Path, corpus: tuple[Path, Path], driver: Driver, kills: int
) -> None:
    """Each next run keeps what is finished; in the end there is every part once, with the same bytes."""
    model, file = corpus
    expected = tmp_path / "expected"
    run(model, file, expected)
    environment = {name: os.environ[name] for name in ("MEDVLLM_HOME", "MEDVLLM_LOCK_FILE", "HOME")}

    def statement(out: Path) -> str:
        given = [str(each) for each in (model, file, out)]
        return f"from pathlib import Path; from tests.test_batch_resume import run; run(*map(Path, {given!r}))"

    status, usual_s = driver.run(statement(tmp_path / "timed"), environment)
    assert status == 0
    chance, out, rounds, at = random.Random(kills), tmp_path / "out", 0, 0
    killed = 0
    while killed < kills:
        rounds += 1
        out = tmp_path / f"out{rounds}"
        for _ in range(3):  # the same batch is killed up to three times
            before = read_status(out).parts_done if (out / "manifest.jsonl").exists() else 0
            status, _ = driver.run(statement(out), environment, chance.uniform(0, usual_s))
            killed += status == -signal.SIGKILL
            if (out / "manifest.jsonl").exists():
                at = read_status(out).parts_done
                assert at >= before and read_status(out).state in ("stopped", "complete")
        done = run(model, file, out)
        assert done.state == "complete" and done.parts_of_run >= PARTS - at - 1
        assert contents(out) == contents(expected)
        assert {each.name for each in out.iterdir()} == {each.name for each in expected.iterdir()}
    assert [row["row"] for row in bad_rows(out)] == [101]


def test_a_worker_that_is_killed_costs_its_part_again(tmp_path: Path, corpus: tuple[Path, Path]) -> None:
    """Two processes write what one writes, also if one of them is killed in the middle."""
    model, file = corpus
    run(model, file, tmp_path / "one")
    out = tmp_path / "two"
    done: list[BatchSummary] = []
    thread = threading.Thread(target=lambda: done.append(run(model, file, out, workers=2)))
    thread.start()
    while count_parts(out) <= 2:  # processes begin slowly on a busy machine
        assert thread.is_alive()
        time.sleep(0.01)
    for worker in multiprocessing.active_children():  # Ctrl-C reaches them, too, and this process ends them
        [held] = re.findall(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{worker.pid}/status").read_text(), re.M)
        assert int(held, 16) & (1 << (signal.SIGINT - 1))
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid or 0, signal.SIGKILL)
    thread.join()
    assert done[0].state == "complete" and contents(out) == contents(tmp_path / "one")
    lines_of_parts = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()][2:]
    assert sorted(line["part"] for line in lines_of_parts) == [*range(PARTS)]
    assert not multiprocessing.active_children()


class Ends:
    """A runner whose process ends while it loads the model."""

    def __init__(self, signal_number: int | None) -> None:
        self._signal = signal_number

    def pinned(self) -> "Ends":
        return self

    def lease_for(self, task: str | None) -> AbstractContextManager[Any]:
        if self._signal is not None:
            os.kill(os.getpid(), self._signal)
        os._exit(1)


class Hangs(Ends):
    """A runner that closes the connection of its process, and goes on."""

    def __init__(self) -> None:
        super().__init__(None)

    def lease_for(self, task: str | None) -> AbstractContextManager[Any]:
        for each in map(int, os.listdir("/proc/self/fd")):
            with suppress(OSError):
                if each > 2 and stat.S_ISSOCK(os.fstat(each).st_mode):
                    os.close(each)
        while True:
            signal.pause()


def test_only_the_system_kills_a_process_for_its_memory() -> None:
    """With SIGKILL. A library that crashes ends with other signals, and what hangs is killed by us."""
    codes = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGTERM, 0, 1, None)
    assert [code for code in codes if explain_end(code).was_killed] == [-signal.SIGKILL]
    assert [str(explain_end(code)) for code in (-11, 1)] == ["signal 11", "exit code 1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (Ends(signal.SIGKILL), "with signal 9. The memory may be full.\nUse fewer workers: --workers 1"),
        (Ends(signal.SIGABRT), f"with signal 6.\n{ADVICE}"),
        (Ends(None), f"with exit code 1.\n{ADVICE}"),
        (Hangs(), f"with a closed connection.\n{ADVICE}"),
    ],
    ids=["killed", "crashed", "ended", "hangs"],
)
def test_processes_that_cannot_begin_are_explained(ends: Ends, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By how they end: Linux kills what finds no memory."""
    monkeypatch.setattr(batch_processes, "_PATIENCE_S", 0.5)
    processes = LocalProcesses(2)
    with pytest.raises(LoadError) as refused:
        processes.start(Job(ends, "ner", {}, "jsonl", False, False, False, None))
    assert str(refused.value) == f"Worker processes end before they are ready, the last one {message}"
    processes.stop()
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, corpus: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With exit code 130; what was finished is kept."""
    model, file = corpus
    out = tmp_path / "out"

    def interrupt() -> None:
        wait_until(lambda: count_parts(out) > 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        arguments = ("batch", str(model), "--in", str(file), "--out", str(out), "--task", "ner", "--rows-per-part", "2")
        done = command(monkeypatch, *arguments)
    finally:
        thread.join()
    assert done.code == 130 and "To go on, give the same command again." in done.err
    before = read_status(out)
    assert before.state == "stopped" and 0 < before.parts_done < before.parts
    assert before.eta_s is not None and before.eta_s > 0
    rest = run(model, file, out, rows_per_part=2)
    assert (rest.state, rest.parts_of_run) == ("complete", before.parts - before.parts_done)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_short_rows_take_bounded_memory(tmp_path: Path) -> None:
    """The peak does not grow with the number of rows."""
    model = tiny.bert_sequence_classifier(tmp_path / "model", config=tiny.labelled(["YES", "NO"]))
    peaks = []
    for count in (50_000, 1_000_000):
        file = tmp_path / f"{count}.jsonl"
        with file.open("w") as stream:
            stream.writelines(f'{{"id": {at}, "text": "fever {at % 100}"}}\n' for at in range(count))
        code = (
            "import resource, sys; from medvllm.engine.model_runner import ModelRunner\n"
            "import torch; torch.set_num_threads(1)\n"
            "done = ModelRunner(sys.argv[1]).batch(sys.argv[2], sys.argv[3], task='classify')\n"
            "assert done.answered == int(sys.argv[4]), done\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        given = (str(model), str(file), str(tmp_path / f"out{count}"), str(count))
        ended = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        peaks.append(int(ended.stdout) / 1024)
    assert peaks[1] < peaks[0] + 150, peaks

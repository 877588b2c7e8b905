"""`medvllm batch --ray`: actors of a real Ray write the bytes that one process writes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from medvllm.cores import count_cores
from medvllm.engine.model_runner.batch.summary import read_status
from medvllm.errors import SettingError
from tests.support import tiny
from tests.test_batch import LABELS, contents, lines
from tests.test_batch_resume import count_parts, run

WORD = "xanthopsiacanary"
PARTS, ROWS = 60, 12
SOME, MANY = 1, 3  # kills of actors, and how many there are: in every run, and in the slow one


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kills",
    [pytest.param(SOME, id="some"), pytest.param(MANY, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_actors_write_what_one_process_writes(tmp_path: Path, ray_folder: Path, kills: int) -> None:
    """An actor that is killed costs its part again; a stopped run goes on here; no text is in a log of Ray.

    What all actors warn of is said once.
    """
    model = tiny.bert_token_classifier(tmp_path / "model", LABELS)
    tokenizer = model / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"do_lower_case": True}))
    rows = ({"id": at, "text": f"Patient {at} {WORD} was given aspirin for fever. " * 4} for at in range(PARTS * ROWS))
    odd = [f'{{"text": "{WORD}'.encode(), {"id": "x", "text": f"{WORD} \ud800"}, {"id": "y", "text": [f"{WORD} b"]}]
    file = lines(tmp_path / "notes.jsonl", [*rows, *odd])
    run(model, file, tmp_path / "one")
    out = tmp_path / "out"
    options = ("--task", "ner", "--rows-per-part", str(ROWS), "--ray", "local", "--workers", str(kills))
    command = [sys.executable, "-m", "medvllm", "batch", str(model), "--in", str(file), "--out", str(out), *options]
    chance = random.Random(kills)
    threads = {"MEDVLLM_THREADS": str(count_cores() + 1)}  # more than there are: the Ray must have room all the same
    environment = os.environ | threads
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as batch:
        everything: list[psutil.Process] = []
        for _ in range(kills):
            parts = count_parts(out) + chance.randint(1, 4)
            while count_parts(out) < parts:  # actors begin slowly on a busy machine
                assert batch.poll() is None
                time.sleep(0.01)
            everything = psutil.Process(batch.pid).children(recursive=True)
            actors = [each for each in everything if "RayWorker" in each.name()]
            chance.choice(actors).send_signal(signal.SIGKILL)
        said, _ = batch.communicate()
    assert batch.returncode == 0, said
    assert contents(out) == contents(tmp_path / "one") and read_status(out).state == "complete"
    written = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["workers"] for line in written if line["kind"] == "run"] == [f"{kills} actors of Ray"]
    assert sorted(line["part"] for line in written if line["kind"] == "part") == [*range(PARTS + 1)]
    assert not [each for each in everything if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    logs = [each for each in ray_folder.rglob("*") if each.is_file()]
    assert logs and not [each for each in logs if WORD.encode() in each.read_bytes()]
    assert WORD not in said and said.count("lowercases, as its files say, but its vocabulary is cased") == 1
    shutil.rmtree(out / "parts")
    (out / "parts").mkdir()
    assert run(model, file, out).parts_of_run == PARTS + 1 and contents(out) == contents(tmp_path / "one")


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Before anything is written but the lock. Also for a batch that is complete: its model was loaded there."""
    model = tiny.bert_token_classifier(tmp_path / "model", LABELS)
    file = lines(tmp_path / "notes.jsonl", ["fever"])
    with pytest.raises(SettingError, match=r"No Ray cluster can be reached at '127\.0\.0\.1:1'.*\n.*ray start --head"):
        run(model, file, tmp_path / "out", ray="127.0.0.1:1")
    for address in ("ray://127.0.0.1:10001", "127.0.0.1", "127.0.0.1:head"):
        with pytest.raises(SettingError, match=rf"'{address}' is "):
            run(model, file, tmp_path / "out", ray=address)
    assert [each.name for each in (tmp_path / "out").iterdir() if each.is_file()] in ([], [".lock"])
    run(model, file, tmp_path / "out")
    with pytest.raises(SettingError, match="No Ray cluster can be reached"):
        run(model, file, tmp_path / "out", ray="127.0.0.1:1")

"""`medvllm ps` and `medvllm plan`: what processes have in memory, and what a model would take."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.presence import processes
from tests.support import tiny, warm


def _medvllm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.medvllm(*arguments, **environment)


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _noted(model: Path) -> list[bool]:
    """Return for each model of that folder which this process has noted whether only a caller holds it."""
    models = processes().get(os.getpid(), {"models": []})["models"]
    return [held["evicted"] for held in models if held["name"] == str(model)]


def test_ps_shows_what_other_processes_hold(tmp_path: Path) -> None:
    """With size, what of it is shared, leases and how long it stays; a process that is gone is not shown."""
    folder = tiny.bert_encoder(tmp_path / "m")
    code = (
        "from medvllm.engine.model_runner import registry; import sys\n"
        f"registry.register('ward-bert', 'clinical', model_path={str(folder)!r})\n"
        "with registry.lease('ward-bert', keep_alive=-1): sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        _until(processes)
        (model,) = json.loads(_medvllm("ps", "--json").stdout)
        assert (model["pid"], model["name"], model["device"], model["leases"]) == (holder.pid, "ward-bert", "cpu", 1)
        assert model["keep_alive"] == -1 and 0 < model["mapped_bytes"] <= model["size_bytes"]
        row = _medvllm("ps").stdout.rstrip("\n").split("\t")
        assert row[:4] == [str(holder.pid), "ward-bert", "cpu", "float32"] and row[-1] == "pinned"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate(timeout=60)
    assert _medvllm("ps", "--json").stdout == "[]\n"
    assert "No process has a model in memory." in _medvllm("ps").stderr


def test_a_process_that_lets_its_models_go_is_no_longer_shown(
    registry: ModelRegistry, tmp_path: Path, home: Path
) -> None:
    """Nor one that ends; a note that is no note is passed over."""
    held: list[Any] = [registry.load_model(tiny.bert_encoder(tmp_path / "m"))]
    held.append(held)  # only the collector can free it
    _until(lambda: _noted(tmp_path / "m") == [False])
    registry.clear_cache()
    _until(lambda: _noted(tmp_path / "m") == [True])
    del held
    gc.collect()
    _until(lambda: _noted(tmp_path / "m") == [])
    (home / "medvllm" / "run" / "1.json").write_text("{")
    (home / "medvllm" / "run" / "x.json").write_text("{}")
    assert {1, "x"}.isdisjoint(processes())
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from medvllm.engine.model_runner import registry; from medvllm.presence import processes; import time\n"
            f"model = registry.load_model({str(tmp_path / 'm')!r})\n"
            "while not processes(): time.sleep(0.02)",
        ],
        timeout=120,
    )
    assert run.returncode == 0 and not list((home / "medvllm" / "run").glob("[2-9]*.json"))


def test_a_home_that_cannot_be_written_costs_no_model(
    registry: ModelRegistry, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note is only for show."""
    (home / "file").write_text("")
    monkeypatch.setenv("MEDVLLM_HOME", str(home / "file"))
    assert registry.load_model(tiny.bert_encoder(tmp_path / "m"))
    time.sleep(0.5)
    assert len(registry._model_cache) == 1


def test_plan_on_the_command_line(tmp_path: Path) -> None:
    """Size, whether it fits, and what it was measured to take once it has been loaded."""
    folder = str(tiny.bert_encoder(tmp_path / "m"))
    plan = json.loads(_medvllm("plan", folder, "--json", MEDVLLM_BUDGET="cpu=1GB").stdout)
    assert (plan["fit"], plan["known_by"], plan["budget_bytes"]) == ("now", "headers", 10**9)
    assert _medvllm("run", folder, "fever").returncode == 0
    rows = dict(line.split("\t") for line in _medvllm("plan", folder, MEDVLLM_BUDGET="cpu=10kB").stdout.splitlines())
    assert rows["fits"] == "never" and rows["size"].endswith("(measured)") and rows["budget"] == "0.0 MB"
    assert "Not enough memory for model" in _medvllm("run", folder, "fever", MEDVLLM_BUDGET="cpu=10kB").stderr

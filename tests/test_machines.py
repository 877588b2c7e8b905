"""What is promised to the last bit holds on other processors too: torch can be told to work as on one of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMERICAL = [f"tests/test_{name}.py" for name in ("replay", "loading", "runner", "baseline", "threads", "memory")]
PLAINEST = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("environment", [PLAINEST, {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}])
def test_every_numerical_test_passes_on_other_processors(tmp_path: Path, environment: dict[str, str]) -> None:
    """Loads, replays, tasks, baselines, threads and budgets, in a process whose kernels are those of another one."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'all'}"]
    run = subprocess.run([*command, *NUMERICAL], cwd=ROOT, env=inherited | environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]

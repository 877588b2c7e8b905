"""Environments in which the tests run programs of others, such as the clients of a protocol."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from filelock import FileLock

_FOLDER = Path.home() / ".cache" / "medvllm-tests"
_CLIENTS = Path(__file__).parents[1] / "clients"


def tool_python(name: str, *packages: str) -> Path:
    """Return the Python of an environment with these packages, which is made once and kept.

    Args:
        name: A word for the environment.
        packages: Pinned, as pip takes them.
    """
    key = "-".join((name, *(package.replace("[", "-").replace("]", "") for package in sorted(packages))))
    folder = _FOLDER / f"{sys.version_info[0]}.{sys.version_info[1]}-{key}"
    python, done = folder / "bin" / "python", folder / "done"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            venv.create(folder, clear=True, with_pip=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
            done.touch()
    return python


def run_client(python: Path, script: str, *arguments: str) -> Any:
    """Return what a script of tests/clients/ prints as JSON."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([python, _CLIENTS / script, *arguments], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

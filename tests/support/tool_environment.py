"""The environment in which the tests run programs of others: the clients of a protocol, and the driver of a browser."""

import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from filelock import FileLock

_CLIENTS = Path(__file__).parents[1] / "clients"
_PINNED = _CLIENTS / "requirements.txt"
_FOLDER = Path(__file__).parents[2] / ".clients" / f"{sys.version_info[0]}.{sys.version_info[1]}"
_HOME = str(Path.home())  # where uv keeps what it has fetched; a test has a home of its own


def run_client(script: str, *arguments: str) -> Any:
    """Return what a script of tests/clients/ prints as JSON."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command: list[str | Path] = [_client_python(), _CLIENTS / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _client_python() -> Path:
    """Return the Python of the environment. It is made when it is first needed, and again if its packages change."""
    python, made = _FOLDER / "bin" / "python", _FOLDER / "packages"
    digest = hashlib.sha256(_PINNED.read_bytes()).hexdigest()
    _FOLDER.parent.mkdir(exist_ok=True)
    with FileLock(f"{_FOLDER}.lock"):
        if not made.exists() or made.read_text() != digest:
            venv.create(_FOLDER, clear=True)
            command = [sys.executable, "-m", "uv", "pip", "sync", "--quiet", "--python", str(python), str(_PINNED)]
            subprocess.run(command, check=True, env=os.environ | {"HOME": _HOME})
            made.write_text(digest)
    return python

"""Libraries that are compared, each in a process of its own; foreign ones in environments of their own."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("answering.py")


def make_environment(folder: Path, *packages: str) -> Path | None:
    """Make an environment with packages beside those of this one, so that torch is the same.

    Returns:
        Its interpreter; None if the packages cannot be installed.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    places = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    Path(places["purelib"], "beside.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--quiet", *packages]
    return None if subprocess.run(install, stdout=sys.stderr, stderr=subprocess.DEVNULL).returncode else python


@dataclass(frozen=True)
class Answered:
    """An answer, with the seconds of wall time and of CPU time that it took."""

    found: Any
    wall: float
    cpu: float


class Program:
    """A library that answers texts, in a process of its own.

    Args:
        library: The name of a function in `answering`.
        folder: The model's folder.
        python: The interpreter; that of this process by default.
        batch: How many texts run together, or what the function makes of it.
        limit: How many tokens of a text are read.
        threads: The number of threads of torch.
    """

    def __init__(
        self, library: str, folder: Path, python: Path | None = None, batch: int = 0, limit: int = 512, threads: int = 1
    ) -> None:
        self._library = library
        self._request = {"batch": batch, "limit": limit}
        command = [str(python or sys.executable), "-c", _SOURCE.read_text(), library, str(folder), str(threads)]
        environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self, texts: Sequence[str], folder: Path) -> Answered:
        """Return what the library makes of texts. They are handed over in a file of the folder."""
        path = folder / "texts.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        assert self._process.stdin and self._process.stdout
        print(json.dumps(self._request | {"texts": str(path)}), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("took "):
                took = json.loads(line.removeprefix("took "))
                return Answered(json.loads(path.with_suffix(".answer").read_text()), took["wall"], took["CPU"])
        raise RuntimeError(f"The program of {self._library!r} ended: {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

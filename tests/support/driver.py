"""Statements in processes that begin at once, to be killed at a moment of their run."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

# It imports everything once, and forks a process of its own session for each statement that it is told.
_DRIVER = """
import json, os, sys
from medvllm.model_registry import ModelRegistry
for line in sys.stdin:
    statement, environment = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.environ.update(environment)
        print(os.getpid(), flush=True)
        try:
            exec(statement, {"os": os, "registry": ModelRegistry()})
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Driver:
    """Runs statements, each in a process of its own that begins at once."""

    def __init__(self, imports: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{imports}\n{_DRIVER}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, statement: str, environment: Mapping[str, str], kill_after_s: float | None = None
    ) -> tuple[int, float]:
        """Run a statement, or kill it and its children then; return its exit status and the seconds it took."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([statement, dict(environment)]) + "\n")
        self._process.stdin.flush()
        pid, start = self._answer(), time.monotonic()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.killpg(pid, signal.SIGKILL)
        return self._answer(), time.monotonic() - start

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def stop(self) -> None:
        """End it; what it runs has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

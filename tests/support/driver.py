"""Statements in processes that begin at once, to be killed at a moment of their run."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping

from tests.support import warm

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
        self._process = warm.Conversation(f"{imports}\n{_DRIVER}")

    def run(
        self, statement: str, environment: Mapping[str, str], kill_after_s: float | None = None
    ) -> tuple[int, float]:
        """Run a statement, or kill it and its children then; return its exit status and the seconds it took."""
        pid, start = int(self._process.ask(json.dumps([statement, dict(environment)]))), time.monotonic()
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.killpg(pid, signal.SIGKILL)
        return int(self._process.stdout.readline()), time.monotonic() - start

    def stop(self) -> None:
        """End it; what it runs has ended."""
        self._process.kill()

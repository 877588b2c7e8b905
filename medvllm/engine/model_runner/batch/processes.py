"""Local processes that answer parts. They map the same weight files, so they share the pages of the weights."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from medvllm.engine.model_runner.batch.part import Part
from medvllm.engine.model_runner.batch.team import Team, WorkerEndedError
from medvllm.engine.model_runner.batch.worker import Job, opened, without_text
from medvllm.errors import MedVLLMError

_PATIENCE_S = 5.0  # for a process that ends by itself
_KILLED = -9  # the exit code that SIGKILL makes, which Linux sends if the memory is full, and Windows does not have


class LocalProcesses(Team["_Process"]):
    """Processes of this machine, each with its own registry and lease.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.words = f"{count} processes"

    def stop(self) -> None:
        """End the processes."""
        for member in self._members:
            member.connection.close()  # each sees it at once, and all end at the same time
        for member in self._members:
            member.stop()
        self._members = []

    def _new(self) -> "_Process":
        return _Process(self._job)

    def _wait(self) -> "Sequence[_Process]":
        ready = wait([member.connection for member in self._members])
        return [member for member in self._members if member.connection in ready]

    def _explain(self, ended: WorkerEndedError) -> tuple[str, str]:
        return (
            f"Worker processes end before they are ready, the last one with {ended}.",
            'In a script, call batch() below: if __name__ == "__main__":\n'
            "To see where a process crashes, set: PYTHONFAULTHANDLER=1",
        )


class _Process:
    """A process.

    Attributes:
        connection: Leads to it.
        is_ready: Whether it has loaded the model.
        part: What it answers now.
    """

    def __init__(self, job: Job) -> None:
        self.is_ready = False
        self.part: Part | None = None
        self.connection, other = multiprocessing.Pipe()
        self._process: SpawnProcess = multiprocessing.get_context("spawn").Process(
            target=answer_parts, args=(job, other), daemon=True
        )
        resource_tracker.ensure_running()  # its own start would let interrupts through to the process
        with _interrupts_held():  # Ctrl-C reaches every process of a terminal; this one ends the others
            self._process.start()
        other.close()

    def send(self, part: Part, receipt: Mapping[str, Any]) -> None:
        """Give it a part. If it has ended, `receive` says so."""
        with suppress(OSError):
            self.connection.send((part, receipt))

    def receive(self) -> Any:
        """Return what it says. WorkerEndedError: it has ended. MedVLLMError: it could not do what it should."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            raise explain_end(self._end(_PATIENCE_S)) from None
        if isinstance(said, MedVLLMError):
            raise said
        return said

    def stop(self) -> None:
        """End it. One that loads the model, or answers, would not hear of it."""
        self._end(_PATIENCE_S if self.is_ready and self.part is None else 0)

    def _end(self, patience_s: float) -> int | None:
        """Return the exit code of the process. None: it did not end in time, and was killed here."""
        self.connection.close()
        self._process.join(patience_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
            return None
        return self._process.exitcode


def explain_end(code: int | None) -> WorkerEndedError:
    """Return what the end of a process says of it.

    Args:
        code: The exit code, which is negative for a signal. None: it closed its connection and did not end.
    """
    if code is None:
        return WorkerEndedError("a closed connection", was_killed=False)
    how = f"exit code {code}" if code >= 0 else f"signal {-code}"
    return WorkerEndedError(how, was_killed=code == _KILLED)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start no process that Ctrl-C would end: a new one inherits which signals are blocked."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def answer_parts(job: Job, connection: Connection) -> None:
    """Answer parts until the other side closes the connection, or ends."""
    try:
        with opened(job) as (worker, receipt):
            said: Any = receipt
            while _say(connection, said) and (given := _hear(connection)) is not None:
                said = worker.answer(*given)
    except Exception as error:
        _say(connection, without_text(error))


def _say(connection: Connection, said: Any) -> bool:
    """Return whether somebody is there to hear it."""
    try:
        connection.send(said)
    except OSError:
        return False
    return True


def _hear(connection: Connection) -> Any:
    """Return what the other side says; None if there is nobody."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None

"""Local processes that answer parts. They map the same weight files, so they share the pages of the weights."""

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from medvllm.engine.model_runner.batch.part import Part
from medvllm.engine.model_runner.batch.same_model import SameModel
from medvllm.engine.model_runner.batch.worker import AnsweredPart, Job, opened
from medvllm.engine.model_runner.batch.workers import Answered, share
from medvllm.errors import LoadError, MedVLLMError
from medvllm.receipt import Receipt

_PATIENCE_S = 5.0  # for a process that was asked to end
_STARTS = 3  # of processes that end before they are ready, one after the other


class LocalProcesses:
    """Processes of this machine, each with its own registry and lease.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.words = f"{count} processes"
        self._count = count
        self._members: list[_Member] = []
        self._same = SameModel()
        self._failed_starts = 0

    def start(self, job: Job) -> Receipt:
        """Start the processes, which load the model, and return what answers."""
        self._job = job
        self._members = [_Member(job) for _ in range(self._count)]
        receipt: Receipt | None = None
        while receipt is None:
            for member in self._ready_members():
                receipt = self._begin(member) or receipt
        return receipt

    def answer(self, parts: Iterator[Part], receipt: Mapping[str, Any]) -> Iterator[Answered]:
        """Yield the parts as they are answered."""
        return share(self, parts, receipt)

    def stop(self) -> None:
        """End the processes."""
        for member in self._members:
            member.stop()
        self._members = []

    @property
    def has_room(self) -> bool:
        """Whether a process waits for a part."""
        return any(member.is_idle for member in self._members)

    def send(self, part: Part, receipt: Mapping[str, Any]) -> None:
        """Give a part to a process that waits."""
        next(member for member in self._members if member.is_idle).send(part, receipt)

    def wait(self) -> Sequence[tuple[Part, AnsweredPart | None]]:
        """Return what is new: parts with their answers, or with None if their process has ended."""
        found: list[tuple[Part, AnsweredPart | None]] = []
        for member in self._ready_members():
            part = member.part
            if part is None:
                self._begin(member)
                continue
            try:
                answered: AnsweredPart = member.receive()
            except EOFError:
                self._replace(member)
                found.append((part, None))
            else:
                member.part = None
                found.append((part, answered))
        return found

    def _ready_members(self) -> "list[_Member]":
        """Wait, and return the members that say something, or have ended."""
        ready = wait([member.connection for member in self._members])
        return [member for member in self._members if member.connection in ready]

    def _begin(self, member: "_Member") -> Receipt | None:
        """Return the receipt of a member that is ready; None if it has ended before, and another one begins."""
        try:
            receipt: Receipt = member.receive()
        except EOFError:
            self._failed_starts += 1
            code = self._replace(member, begins=self._failed_starts < _STARTS)
            if self._failed_starts == _STARTS:
                raise LoadError(
                    f"Worker processes end before they are ready, the last one with exit code {code}.\n"
                    'In a script, call batch() below: if __name__ == "__main__":'
                ) from None
            return None
        member.is_ready, self._failed_starts = True, 0
        self._same.check(receipt)
        return receipt

    def _replace(self, member: "_Member", *, begins: bool = True) -> int | None:
        """Put a new process in the place of one that has ended, and return the exit code of the old one."""
        code = member.stop()
        at = self._members.index(member)
        self._members[at : at + 1] = [_Member(self._job)] if begins else []
        return code


class _Member:
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
            target=_work, args=(job, other), daemon=True
        )
        with _interrupts_held():  # Ctrl-C reaches every process of a terminal; this one ends the others
            self._process.start()
        other.close()

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a part."""
        return self.is_ready and self.part is None

    def send(self, part: Part, receipt: Mapping[str, Any]) -> None:
        """Give it a part. If it has ended, `receive` says so."""
        self.part = part
        with suppress(OSError):
            self.connection.send((part, receipt))

    def receive(self) -> Any:
        """Return what it says. EOFError: it has ended. MedVLLMError: it could not do what it should."""
        try:
            said = self.connection.recv()
        except OSError:
            raise EOFError from None
        if isinstance(said, MedVLLMError):
            raise said
        return said

    def stop(self) -> int | None:
        """End it, and return its exit code."""
        self.connection.close()
        self._process.join(0 if self.part is not None else _PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


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


def _work(job: Job, connection: Connection) -> None:
    """Answer parts until the other side closes the connection, or ends."""
    with suppress(EOFError, OSError):
        try:
            with opened(job) as (worker, receipt):
                connection.send(receipt)
                while True:
                    connection.send(worker.answer(*connection.recv()))
        except MedVLLMError as error:
            connection.send(error)

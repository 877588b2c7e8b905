"""Workers that answer one part each at a time: local processes, or actors of Ray."""

import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from medvllm.engine.model_runner.batch.part import Part
from medvllm.engine.model_runner.batch.same_model import SameModel
from medvllm.engine.model_runner.batch.worker import AnsweredPart, Job
from medvllm.engine.model_runner.batch.workers import Answered
from medvllm.errors import BudgetError, DeviceMemoryError, LoadError
from medvllm.receipt import Receipt

_LOG = logging.getLogger(__name__)
_STARTS = 3  # of workers that end before they are ready, one after the other
_TRIES = 3  # of a part whose worker ends
_LARGER = "Use a machine with more memory"
_SMALLER = f"{_LARGER}, or begin anew with smaller parts: --rows-per-part 100 --restart"


class WorkerEndedError(Exception):
    """A worker has ended. The message says how.

    Args:
        how: The message.
        was_killed: Whether the system ended it, as it does if the memory is full.
    """

    def __init__(self, how: str, *, was_killed: bool) -> None:
        super().__init__(how)
        self.was_killed = was_killed


class Member(Protocol):
    """A worker. The first thing that it says is the receipt of what it has loaded.

    Attributes:
        part: What it answers now.
        is_ready: Whether it has loaded the model.
    """

    part: Part | None
    is_ready: bool

    def send(self, part: Part, receipt: Mapping[str, Any]) -> None:
        """Give it a part. If it has ended, `receive` says so."""
        ...

    def receive(self) -> Any:
        """Return what it says, as soon as it is ready to say something.

        Raises:
            WorkerEndedError: It has ended.
            MedVLLMError: It could not do what it should.
        """
        ...

    def stop(self) -> None:
        """End it."""
        ...


M = TypeVar("M", bound=Member)


class Team(ABC, Generic[M]):
    """Workers that answer one part each at a time. In the place of one that ends, another one begins.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._members: list[M] = []
        self._same = SameModel()
        self._failed_starts = 0

    def start(self, job: Job) -> Receipt:
        """Start the workers, which load the model, and return what answers."""
        self._job = job
        for _ in range(self._count):
            self._members.append(self._new())
        receipt: Receipt | None = None
        while receipt is None:
            for member in self._wait():
                receipt = self._begin(member) or receipt
        return receipt

    def answer(self, parts: Iterator[Part], receipt: Mapping[str, Any]) -> Generator[Answered]:
        """Yield the parts as they are answered. If a worker ends, its part is given to another one.

        Raises:
            LoadError: One part has ended several workers.
        """
        waiting: deque[Part] = deque()
        ends: Counter[int] = Counter()
        sent = 0
        while True:
            if not waiting and (following := next(parts, None)) is not None:
                waiting.append(following)
            if not waiting and not sent:
                return
            idle = next((member for member in self._members if member.is_ready and member.part is None), None)
            if waiting and idle is not None:
                idle.part = waiting.popleft()
                idle.send(idle.part, receipt)
                sent += 1
                continue
            for part, answered in self._receive():
                sent -= 1
                if answered is not None:
                    yield part, answered
                    continue
                ends[part.number] += 1
                if ends[part.number] == _TRIES:
                    last = part.first + len(part.rows) - 1
                    raise LoadError(
                        f"A worker ended {_TRIES} times while it answered rows {part.first:,} to {last:,}. The memory "
                        f"may be full.\n{self._advice(_SMALLER)}"
                    )
                waiting.append(part)

    @abstractmethod
    def _new(self) -> M:
        """Start a worker."""

    @abstractmethod
    def _wait(self) -> Sequence[M]:
        """Wait, and return the members that say something, or have ended."""

    @abstractmethod
    def _explain(self, ended: WorkerEndedError) -> tuple[str, str]:
        """Return what the error for workers that end before they are ready says, and advises if none was killed."""

    def _receive(self) -> list[tuple[Part, AnsweredPart | None]]:
        """Return what is new: parts with their answers, or with None if their worker has ended."""
        found: list[tuple[Part, AnsweredPart | None]] = []
        for member in self._wait():
            if (part := member.part) is None:
                self._begin(member)
                continue
            answered: AnsweredPart | None = None
            try:
                answered = member.receive()
            except WorkerEndedError:
                self._replace(member)
            member.part = None
            found.append((part, answered))
        return found

    def _begin(self, member: M) -> Receipt | None:
        """Return the receipt of a member that is ready; None if it cannot begin.

        Another one takes its place. After several of them, the others go on without it: the memory may be full.
        """
        try:
            receipt: Receipt = member.receive()
        except WorkerEndedError as ended:
            self._failed_starts += 1
            if self._failed_starts < _STARTS:
                self._replace(member)
                return None
            what, advice = self._explain(ended)
            if ended.was_killed:
                what, advice = f"{what} The memory may be full.", self._advice(f"{_LARGER}.")
            error = LoadError(f"{what}\n{advice}")
            error.__cause__ = ended.__cause__
            self._drop(member, error)
            return None
        except (BudgetError, DeviceMemoryError) as error:
            self._drop(member, error)
            return None
        member.is_ready, self._failed_starts = True, 0
        self._same.check(receipt)
        return receipt

    def _replace(self, member: M) -> None:
        """Start another worker in the place of one that has ended."""
        self._members[self._members.index(member)] = self._new()

    def _drop(self, member: M, error: LoadError) -> None:
        """Go on without a worker. Raises why it cannot begin, if no other one is left."""
        self._members.remove(member)
        self._failed_starts = 0
        member.stop()
        if not self._members:
            raise error
        why = str(error).partition("\n")[0]
        _LOG.warning("%s The batch goes on with %d of %d workers.", why, len(self._members), self._count)

    def _advice(self, alone: str) -> str:
        """Return what to do if the memory is full, or `alone` for one worker."""
        return "Use fewer workers: --workers 1" if self._count > 1 else alone

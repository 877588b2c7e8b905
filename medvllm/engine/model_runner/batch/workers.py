"""Who answers the parts of a batch: this process, or workers that answer one part each at a time."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from medvllm.engine.model_runner.batch.part import Part
from medvllm.engine.model_runner.batch.worker import AnsweredPart, Job, opened
from medvllm.errors import LoadError
from medvllm.receipt import Receipt

Answered = tuple[Part, AnsweredPart]
_TRIES = 3  # of a part whose worker ends


class Workers(Protocol):
    """Who answers parts.

    Attributes:
        words: Who they are, for the manifest.
    """

    words: str

    def start(self, job: Job) -> Receipt:
        """Load the model, and return what answers."""
        ...

    def answer(self, parts: Iterator[Part], receipt: Mapping[str, Any]) -> Iterator[Answered]:
        """Yield the parts as they are answered. Only a few of them are in memory.

        Args:
            parts: The parts.
            receipt: What the metadata of the files says of the model.

        Raises:
            MedVLLMError: The model cannot answer.
        """
        ...

    def stop(self) -> None:
        """End the workers."""
        ...


class ThisProcess:
    """Answers in this process, part by part."""

    words = "this process"

    def __init__(self) -> None:
        self._stack = ExitStack()

    def start(self, job: Job) -> Receipt:
        """Load the model, and return what answers."""
        self._worker, receipt = self._stack.enter_context(opened(job))
        return receipt

    def answer(self, parts: Iterator[Part], receipt: Mapping[str, Any]) -> Iterator[Answered]:
        """Yield the parts as they are answered."""
        for part in parts:
            yield part, self._worker.answer(part, receipt)

    def stop(self) -> None:
        """Let go of the model."""
        self._stack.close()


class Pool(Protocol):
    """Workers elsewhere, each of which answers one part at a time.

    Attributes:
        has_room: Whether a worker waits for a part.
    """

    @property
    def has_room(self) -> bool: ...

    def send(self, part: Part, receipt: Mapping[str, Any]) -> None:
        """Give a part to a worker that waits."""
        ...

    def wait(self) -> Sequence[tuple[Part, AnsweredPart | None]]:
        """Return what is new: parts with their answers, or with None if their worker has ended."""
        ...


def share(pool: Pool, parts: Iterator[Part], receipt: Mapping[str, Any]) -> Iterator[Answered]:
    """Yield parts as a pool answers them. If a worker ends, its part is given to another one.

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
        if waiting and pool.has_room:
            pool.send(waiting.popleft(), receipt)
            sent += 1
            continue
        for part, answered in pool.wait():
            sent -= 1
            if answered is not None:
                yield part, answered
                continue
            ends[part.number] += 1
            if ends[part.number] == _TRIES:
                last = part.first + len(part.rows) - 1
                raise LoadError(
                    f"A worker ended {_TRIES} times while it answered rows {part.first:,} to {last:,}. The memory may "
                    "be full.\nUse fewer workers: --workers 1"
                )
            waiting.append(part)

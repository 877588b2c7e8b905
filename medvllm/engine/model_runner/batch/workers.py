"""Who answers the parts of a batch: this process, or workers that answer one part each at a time."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from medvllm.engine.model_runner.batch.part import Part
from medvllm.engine.model_runner.batch.worker import AnsweredPart, Job, opened
from medvllm.receipt import Receipt

Answered = tuple[Part, AnsweredPart]


class Workers(Protocol):
    """Who answers parts.

    Attributes:
        words: Who they are, for the manifest.
    """

    words: str

    def start(self, job: Job) -> Receipt:
        """Load the model, and return what answers."""
        ...

    def answer(self, parts: Iterator[Part], receipt: Mapping[str, Any]) -> Generator[Answered]:
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

    def answer(self, parts: Iterator[Part], receipt: Mapping[str, Any]) -> Generator[Answered]:
        """Yield the parts as they are answered."""
        for part in parts:
            yield part, self._worker.answer(part, receipt)

    def stop(self) -> None:
        """Let go of the model."""
        self._stack.close()

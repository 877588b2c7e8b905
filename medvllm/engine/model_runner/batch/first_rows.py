"""Whether a batch is refused, because none of its first rows can be answered."""

from collections.abc import Mapping

from medvllm.engine.model_runner.batch.part import error_of_all
from medvllm.engine.model_runner.batch.worker import AnsweredPart
from medvllm.errors import MedVLLMError

_MOST = 1_000  # rows without an answer at the beginning of a corpus


class FirstRows:
    """Looks at the first parts: if no row there can be answered, likely none can.

    Parts count in the order of the corpus, and not in that in which they are finished, so that each run, with any
    number of workers, decides alike.

    Args:
        answered: How many rows of each part that an earlier run finished have an answer, by its number.

    Attributes:
        have_answer: Whether one of the first rows has an answer.
    """

    def __init__(self, answered: Mapping[int, int]) -> None:
        self.have_answer = False
        self._finished: dict[int, tuple[int, int, MedVLLMError | None]] = {
            number: (count, 0, None) for number, count in answered.items()
        }
        self._next = self._failed = 0
        self._failure: MedVLLMError | None = None
        self._look()

    def add(self, part: AnsweredPart) -> None:
        """Take a part into account. Raises why its rows have no answer, if too many of the first ones have none."""
        failed = 0 if part.failure is None else len(part.bad)
        self._finished[part.number] = part.answered, failed, part.failure
        self._look()
        if self._failed >= _MOST:
            self.check()

    def check(self) -> None:
        """Raise why the first rows have no answer, if none has one."""
        if self._failure is not None and not self.have_answer:
            first = f"the first {_MOST:,} rows" if self._failed >= _MOST else "the rows"
            raise error_of_all(self._failure, f"{first} can be answered")

    def _look(self) -> None:
        while not self.have_answer and self._failed < _MOST and self._next in self._finished:
            answered, failed, failure = self._finished.pop(self._next)
            self.have_answer = answered > 0
            self._failed += failed
            self._failure = self._failure or failure
            self._next += 1

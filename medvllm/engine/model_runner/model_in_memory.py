"""A leased model that answers the chunks of a corpus, as `CorpusRun` asks for them."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from medvllm.engine.model_runner.foreign_errors import translate_other_errors
from medvllm.engine.model_runner.generation.answers import Piece
from medvllm.engine.model_runner.generation.generate import stream
from medvllm.engine.model_runner.generation.options import check_generate_options
from medvllm.engine.model_runner.request import current_limits
from medvllm.engine.model_runner.results import Result
from medvllm.engine.model_runner.tasks import default_task, run_task
from medvllm.model_registry import Lease
from medvllm.receipt import Receipt


class ModelInMemory:
    """Answers with a leased model.

    Args:
        lease: The model.
        with_receipt: Whether `receipt` is made.
    """

    takes_parts = True

    def __init__(self, lease: Lease, *, with_receipt: bool) -> None:
        self._lease, self._with_receipt = lease, with_receipt

    @property
    def receipt(self) -> Receipt | None:
        """What exactly answers; None if it was not asked for."""
        return self._lease.receipt if self._with_receipt else None

    def streams(self, task: str | None, texts: Sequence[Any]) -> bool:
        """Return whether the answers come piece by piece, if somebody listens."""
        return (task or default_task(self._lease, texts)) == "generate"

    def run(self, task: str | None, texts: Sequence[Any], arguments: Mapping[str, Any]) -> Result:
        """Return the answers."""
        return run_task(self._lease, task, texts, arguments)

    def stream(self, texts: Sequence[Any], arguments: Mapping[str, Any]) -> Generator[Piece]:
        """Yield the answers of the task generate, piece by piece."""
        with closing(stream(self._lease, texts, check_generate_options(**arguments), current_limits())) as pieces:
            while True:
                with translate_other_errors(self._lease.metadata.name):  # an error of the listener is its own
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece

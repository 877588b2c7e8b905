"""A runner that notes which version of an entry answered."""

from collections.abc import Generator, Iterable, MutableMapping
from contextlib import closing
from typing import Any

from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.generation.answers import Piece

VERSION = "version"


class ServedRunner(ModelRunner):
    """Runs tasks, and notes the version that answered: an alias may move between the request and the answer.

    Args:
        name: The name of the model.
        about: Where the version is noted.
        **options: As for `ModelRunner`.
    """

    def __init__(self, name: str, about: MutableMapping[str, str], **options: Any) -> None:
        super().__init__(name, **options)
        self._about = about

    def run(self, task: str | None, texts: Iterable[Any], *, with_receipt: bool = False, **arguments: Any) -> Any:
        """Return what `ModelRunner.run` does."""
        result = super().run(task, texts, with_receipt=with_receipt, **arguments)
        self._about[VERSION] = str(result.version)
        return result

    def stream(self, prompts: Iterable[Any], **options: Any) -> Generator[Piece]:
        """Yield what `ModelRunner.generate` does with `stream`. The version is noted before the first piece."""
        with closing(self.generate(prompts, stream=True, **options)) as pieces:
            for piece in pieces:
                self._about[VERSION] = str(piece.version)
                yield piece

"""What every writer of answers does."""

from typing import IO, Any, ClassVar, Literal

from medvllm.corpora.writing.answers import Answers


class Writer:
    """Writes the answers for a corpus to a stream, chunk by chunk.

    Attributes:
        kind: What a task must answer with; None if any answer can be written.
        has_ids: Whether the ids of the corpus are written.
    """

    kind: ClassVar[Literal["texts", "vectors"] | None] = None
    has_ids: ClassVar[bool] = True

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    @staticmethod
    def check() -> None:
        """Raise MissingDependencyError if a package that the writer needs is not installed."""

    def write(self, answers: Answers) -> None:
        """Write the answers for a chunk.

        Raises:
            RequestError: The format cannot hold them.
        """
        raise NotImplementedError

    def finish(self, receipt: dict[str, Any] | None) -> None:
        """Write what comes after the last answers."""

    def abandon(self) -> None:
        """Leave the stream as it is: nobody will read it."""

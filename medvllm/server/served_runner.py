"""A runner that notes which version of an entry answered."""

from collections.abc import Generator, Iterable, Mapping, MutableMapping, Sequence
from contextlib import closing
from typing import Any

from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.generation.answers import Piece
from medvllm.server.problem import Problem, ProblemError

VERSION = "version"
_MAX_FILLS = 200_000  # gaps of a request, times the word pieces for each
_MAX_SPANS = 20_000  # to judge in a request; each takes a window
_FILLS = 5  # for a gap, if the request does not say it


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
        """Return what `ModelRunner.run` does. ProblemError: the answer to a small request would fill the memory."""
        texts = list(texts)
        if (task or self.task) == "fill-mask":
            _check_fills(texts, arguments)
        _check_count("spans", sum(map(_length, _items(arguments.get("spans")))), _MAX_SPANS)
        result = super().run(task, texts, with_receipt=with_receipt, **arguments)
        self._about[VERSION] = str(result.version)
        return result

    def stream(self, prompts: Iterable[Any], **options: Any) -> Generator[Piece]:
        """Yield what `ModelRunner.generate` does with `stream`. The version is noted before the first piece."""
        with closing(self.generate(prompts, stream=True, **options)) as pieces:
            for piece in pieces:
                self._about[VERSION] = str(piece.version)
                yield piece


def _check_fills(texts: Sequence[str], arguments: Mapping[str, Any]) -> None:
    gaps = sum(text.count("[MASK]") + text.count("<mask>") for text in texts)
    top_k = arguments.get("top_k")
    fills = top_k if isinstance(top_k, int) else _length(arguments.get("targets")) or _FILLS
    _check_count("top_k", gaps * fills, _MAX_FILLS)


def _items(value: Any) -> Sequence[Any]:
    """Return the items of a list. What is none is for the task to refuse."""
    return value if isinstance(value, list | tuple) else ()


def _length(value: Any) -> int:
    return len(_items(value))


def _check_count(param: str, count: int, limit: int) -> None:
    if count > limit:
        message = f"The answer would have {count:,} records, and may have {limit:,}.\nSend several requests."
        raise ProblemError(Problem(413, "too_many_records", message, param))

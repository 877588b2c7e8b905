"""A runner that notes which version of an entry answered."""

from collections.abc import Generator, Iterable, Mapping, MutableMapping, Sequence
from contextlib import closing
from typing import Any

from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.fill_mask import TOP_K
from medvllm.engine.model_runner.generation.answers import Piece
from medvllm.server.problem import Problem, ProblemError
from medvllm.words import usual_task

VERSION = "version"
_MAX_FILLS = 200_000  # gaps of a request, times the word pieces for each
_MAX_LABELS = 500_000  # texts of a request, times the labels for each
_MAX_SPANS = 20_000  # to judge in a request; each takes a window


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
        chosen = self.task if task is None else usual_task(task)
        if chosen == "fill-mask":
            _check_fills(texts, arguments)
        elif chosen == "classify":
            self._check_labels(len(texts), arguments.get("top_k"))
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

    def _check_labels(self, texts: int, top_k: Any) -> None:
        wanted = top_k if isinstance(top_k, int) else None
        if wanted is not None and texts * wanted <= _MAX_LABELS:
            return  # however many labels the model has
        known = self._registry.get_metadata(self._name).behaviour.id2label
        if known is None:
            with self.lease_for("classify") as lease:
                labels = int(lease.model.config.num_labels)
        else:
            labels = len(known)
        _check_count("top_k", texts * (labels if wanted is None else min(wanted, labels)), _MAX_LABELS)


def _check_fills(texts: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    given = [text for text in texts if isinstance(text, str)]  # others are for the task to refuse
    gaps = sum(text.count("[MASK]") + text.count("<mask>") for text in given)
    top_k = arguments.get("top_k")
    fills = top_k if isinstance(top_k, int) else _length(arguments.get("targets")) or TOP_K
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

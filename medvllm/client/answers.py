"""Answers of a server as the results of the library."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from medvllm.errors import MissingDependencyError

if TYPE_CHECKING:
    from medvllm.engine.model_runner.coverage import Coverage
    from medvllm.engine.model_runner.generation.answers import Answer, Piece
    from medvllm.engine.model_runner.results import Result

T = TypeVar("T")

# The classes of the results are imported in the functions, so that importing the client is fast.


def read_result(content: Mapping[str, Any]) -> "Result":
    """Return the result that a server answered with."""
    from medvllm.receipt import Receipt

    found = _READERS[content["task"]](content)
    found.task, found.version = content["task"], content["version"]
    if (receipt := content.get("receipt")) is not None:
        found.receipt = Receipt.from_dict(receipt)
    return found


def read_piece(content: Mapping[str, Any]) -> "Piece":
    """Return the piece of a stream."""
    from medvllm.engine.model_runner.generation.answers import Piece

    answer = content["answer"]
    piece = Piece(content["text"], content["position"], None if answer is None else _answer(answer))
    piece.version = content["version"]
    return piece


def _make(kind: type[T], record: Mapping[str, Any], **others: Any) -> T:
    """Return an object of a record. What a later release adds to it is left out; what it lacks is an error."""
    known: Any = kind  # a dataclass
    return kind(**{each.name: record[each.name] for each in fields(known) if each.name in record}, **others)


def _coverage(record: Mapping[str, Any]) -> "Coverage":
    from medvllm.engine.model_runner.coverage import Coverage

    read = tuple((start, end) for start, end in record["read"])
    return Coverage(read, record["tokens"], record["unknown"], record["windows"], record["truncated"])


def _embeddings(content: Mapping[str, Any]) -> "Result":
    import base64

    try:
        import numpy as np
    except ImportError as error:
        raise MissingDependencyError(
            "Vectors need NumPy.\nInstall it with: pip install numpy", package="numpy"
        ) from error
    from medvllm.engine.model_runner.embedding.embed import Embeddings

    vectors = np.frombuffer(base64.b64decode(content["vectors"]["data"]), "<f4").astype(np.float32)
    shaped = vectors.reshape(content["vectors"]["shape"])
    return Embeddings(shaped, list(map(_coverage, content["records"])), content["similarity"])


def _entities(content: Mapping[str, Any]) -> "Result":
    from medvllm.engine.model_runner.tagging.entities import Entities, EntityResults
    from medvllm.engine.model_runner.tagging.spans import Span, WordSpan

    def span_of(record: Mapping[str, Any]) -> Span:
        return _make(WordSpan if "first_word" in record else Span, record)

    return EntityResults(
        Entities(list(map(span_of, record["spans"])), _coverage(record)) for record in content["records"]
    )


def _redactions(content: Mapping[str, Any]) -> "Result":
    from medvllm.engine.model_runner.redaction.results import RedactedItem, Redaction, RedactionResults

    return RedactionResults(
        Redaction(record["text"], [_make(RedactedItem, item) for item in record["items"]], _coverage(record))
        for record in content["records"]
    )


def _classifications(content: Mapping[str, Any]) -> "Result":
    from medvllm.engine.model_runner.classification.classify import Classification, ClassificationResults, Label

    found = ClassificationResults(
        Classification(tuple(_make(Label, label) for label in record["labels"]), _coverage(record))
        for record in content["records"]
    )
    found.classes = tuple(content["classes"])
    return found


def _assertions(content: Mapping[str, Any]) -> "Result":
    from medvllm.engine.model_runner.classification.assertions import Assertion, AssertionResults

    return AssertionResults(
        [_make(Assertion, found, coverage=_coverage(found)) for found in record["assertions"]]
        for record in content["records"]
    )


def _ranking(content: Mapping[str, Any]) -> "Result":
    from medvllm.engine.model_runner.ranking import RankedText, Ranking

    return Ranking(RankedText(record["index"], record["score"], _coverage(record)) for record in content["records"])


def _fills(content: Mapping[str, Any]) -> "Result":
    from medvllm.engine.model_runner.fill_mask import Fill, FilledText, FillMaskResults

    return FillMaskResults(
        FilledText(([_make(Fill, fill) for fill in gap] for gap in record["gaps"]), _coverage(record))
        for record in content["records"]
    )


def _answer(record: Mapping[str, Any]) -> "Answer":
    from medvllm.engine.model_runner.generation.answers import Answer

    return _make(Answer, {**record, **record["usage"]}, coverage=_coverage(record))


def _generations(content: Mapping[str, Any]) -> "Result":
    from medvllm.engine.model_runner.generation.answers import GenerationResults

    return GenerationResults(map(_answer, content["records"]))


_READERS: "dict[str, Callable[[Mapping[str, Any]], Result]]" = {
    "embed": _embeddings,
    "ner": _entities,
    "deid": _entities,
    "redact": _redactions,
    "classify": _classifications,
    "assertions": _assertions,
    "rerank": _ranking,
    "fill-mask": _fills,
    "generate": _generations,
}

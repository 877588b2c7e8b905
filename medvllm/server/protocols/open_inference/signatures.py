"""The tensors of each task: what a model takes, and what it answers with."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.metadata import ModelMetadata
from medvllm.server.protocols.open_inference.tensors import Numbers, TensorSpec, Texts, invalid
from medvllm.server.strict_json import JSONError, parse_json

Tensor = Texts | Numbers
_COVERAGE = frozenset(field.name for field in fields(Coverage))
_TEXT = TensorSpec("text", "BYTES", (-1,))


@dataclass(frozen=True)
class Signature:
    """The tensors of a task.

    Attributes:
        inputs: What a request has.
        outputs: What an answer has.
        options: Returns the options of the task that are tensors of the request.
        read: Returns the tensors of a result, by name.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: Callable[[Mapping[str, Texts]], dict[str, Any]]
    read: Callable[[Any], dict[str, Tensor]]


def signature_of(entry: ModelMetadata, task: str) -> Signature:
    """Return the tensors of an entry's task. ProblemError: the task has none."""
    found = _SIGNATURES.get(task)
    if found is None:
        raise invalid(f"Task {task!r} has no tensors.")
    if len(entry.behaviour.inputs) == 2 and "query" not in [spec.name for spec in found.inputs]:
        pairs = TensorSpec("text", "BYTES", (-1, 2))
        return Signature((pairs, *found.inputs[1:]), found.outputs, found.options, found.read)
    return found


def rows_of(texts: Texts, spec: TensorSpec) -> list[Any]:
    """Return the texts of a request, or the pairs if the model takes pairs. ProblemError: the shape is another."""
    if len(spec.shape) == 2:
        if len(texts.shape) != 2 or texts.shape[1] != 2:
            raise invalid(f"Input {spec.name!r} needs the shape [-1, 2]: two texts in each row.")
        return [list(pair) for pair in zip(texts.values[::2], texts.values[1::2], strict=True)]
    if texts.shape[1:] not in ((), (1,)):  # Triton's clients put a dimension for the batch in front
        raise invalid(f"Input {spec.name!r} needs the shape [-1] or [-1, 1].")
    return texts.values


def _no_options(inputs: Mapping[str, Texts]) -> dict[str, Any]:
    return {}


def _query(inputs: Mapping[str, Texts]) -> dict[str, Any]:
    query = inputs["query"].values
    if len(query) != 1:
        raise invalid("Input 'query' needs one element.")
    return {"query": query[0]}


def _spans(inputs: Mapping[str, Texts]) -> dict[str, Any]:
    try:
        return {"spans": [parse_json(text.encode()) for text in inputs["spans"].values]}
    except JSONError:
        message = """Input 'spans' needs JSON for each text, such as '[{"start": 0, "end": 5}]'."""
        raise invalid(message) from None


def _read_vectors(result: Any) -> dict[str, Tensor]:
    return {"embedding": Numbers(result.vectors), "coverage": _coverage(result.to_dict())}


def _read_labels(result: Any) -> dict[str, Tensor]:
    import numpy as np

    labels = [[label.label for label in found] for found in result]
    scores = np.array([[label.score for label in found] for found in result], np.float32)
    names = Texts(scores.shape, [name for row in labels for name in row])
    return {"label": names, "score": Numbers(scores), "coverage": _coverage(result.to_dict())}


def _read_ranking(result: Any) -> dict[str, Tensor]:
    import numpy as np

    found = sorted(result, key=lambda text: text.index)  # in the order of the request
    scores = np.array([text.score for text in found], np.float32)
    return {"score": Numbers(scores), "coverage": _coverage([text.to_dict() for text in found])}


def _read_answers(result: Any) -> dict[str, Tensor]:
    count = (len(result),)
    texts = {
        "generated_text": Texts(count, [answer.text for answer in result]),
        "finish_reason": Texts(count, [answer.finish_reason for answer in result]),
    }
    return {**texts, "coverage": _coverage(result.to_dict())}


def _records(name: str, key: str) -> Callable[[Any], dict[str, Tensor]]:
    """Return a reader of results whose answer for a text is the JSON of one field of its record."""

    def read(result: Any) -> dict[str, Tensor]:
        records = result.to_dict()
        return {name: _to_json([record[key] for record in records]), "coverage": _coverage(records)}

    return read


def _read_assertions(result: Any) -> dict[str, Tensor]:
    return {"assertions": _to_json([record["assertions"] for record in result.to_dict()])}


def _coverage(records: Sequence[Mapping[str, Any]]) -> Texts:
    return _to_json([{name: value for name, value in record.items() if name in _COVERAGE} for record in records])


def _to_json(values: Sequence[Any]) -> Texts:
    return Texts((len(values),), [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values])


def _bytes(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "BYTES", shape or (-1,))


_COVERED = _bytes("coverage")
_ENTITIES = Signature((_TEXT,), (_bytes("entities"), _COVERED), _no_options, _records("entities", "spans"))
_SIGNATURES = {
    "embed": Signature((_TEXT,), (TensorSpec("embedding", "FP32", (-1, -1)), _COVERED), _no_options, _read_vectors),
    "ner": _ENTITIES,
    "deid": _ENTITIES,
    "classify": Signature(
        (_TEXT,), (_bytes("label", -1, -1), TensorSpec("score", "FP32", (-1, -1)), _COVERED), _no_options, _read_labels
    ),
    "fill-mask": Signature((_TEXT,), (_bytes("gaps"), _COVERED), _no_options, _records("gaps", "gaps")),
    "generate": Signature(
        (_TEXT,), (_bytes("generated_text"), _bytes("finish_reason"), _COVERED), _no_options, _read_answers
    ),
    "rerank": Signature(
        (_TEXT, _bytes("query", 1)), (TensorSpec("score", "FP32", (-1,)), _COVERED), _query, _read_ranking
    ),
    "assertions": Signature((_TEXT, _bytes("spans")), (_bytes("assertions"),), _spans, _read_assertions),
}

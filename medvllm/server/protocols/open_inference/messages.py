"""Requests and answers of `infer`: JSON, and the raw bytes of tensors behind it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError

from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.open_inference.tensors import (
    MAX_DIMENSIONS,
    Numbers,
    Texts,
    invalid,
    texts_from_bytes,
    texts_from_json,
)
from medvllm.server.strict_json import JSONError, parse_json
from medvllm.server.texts import TolerantModel

HEADER_LENGTH = "Inference-Header-Content-Length"

Parameter = bool | int | float | str
# What would change the answer, and is not done.
_REFUSED = ("classification", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


class InputTensor(TolerantModel):
    """A tensor of a request."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_DIMENSIONS)]
    datatype: str
    parameters: Annotated[dict[str, Any], Field(default_factory=dict)]
    data: list[Any] | None = None


class WantedTensor(TolerantModel):
    """A tensor that the answer shall have."""

    name: str
    parameters: Annotated[dict[str, Any], Field(default_factory=dict)]


class InferRequest(TolerantModel):
    """A request for inference. Unknown keys are ignored, as clients send keys of their own."""

    id: Annotated[str, Field(max_length=200)] | None = None
    parameters: Annotated[dict[str, Parameter], Field(default_factory=dict)]
    inputs: Annotated[list[InputTensor], Field(min_length=1)]
    outputs: Annotated[list[WantedTensor], Field(default_factory=list)]


class InferTensor(BaseModel):
    """A tensor of an answer. Its elements are in `data`, or behind the JSON: `parameters.binary_data_size` bytes."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class InferAnswer(BaseModel):
    """The answer of a model."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferTensor]


def _inline(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema with what it refers to in place: only the schemas of typed bodies are among the components."""
    if isinstance(schema, list):
        return [_inline(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline(part, definitions) for name, part in schema.items() if name != "$defs"}


_SCHEMA = InferRequest.model_json_schema()
INFER_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": _inline(_SCHEMA, _SCHEMA["$defs"]),
                "example": {
                    "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Given aspirin."]}],
                },
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@dataclass(frozen=True)
class Inference:
    """A request that has been read.

    Attributes:
        id: The client's own id, for the answer.
        inputs: The tensors by name.
        parameters: What the client asks for beside them.
        wanted: For each tensor that the answer shall have, whether as raw bytes. Empty for all.
        is_binary: Whether tensors of which `wanted` says nothing shall be raw bytes.
    """

    id: str | None
    inputs: dict[str, Texts]
    parameters: dict[str, Parameter]
    wanted: dict[str, bool]
    is_binary: bool


def read_inference(body: bytes, header_length: str | None) -> Inference:
    """Return the request in a body.

    Args:
        body: The body, decompressed.
        header_length: The header that says how many bytes of it are JSON; None if all are.

    Raises:
        ProblemError: It is no request of the protocol, or its parts do not fit together.
        RequestValidationError: Its JSON does not fit the schema.
    """
    length = len(body) if header_length is None else _to_length(header_length, len(body))
    try:
        asked = InferRequest.model_validate(parse_json(body[:length]))
    except JSONError as error:
        raise ProblemError(Problem(400, "invalid_json", f"{error}.")) from None
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from None
    inputs, rest = {}, memoryview(body)[length:]
    for tensor in asked.inputs:
        if tensor.name in inputs:
            raise invalid("Two inputs have the same name.")
        inputs[tensor.name], rest = _read_tensor(tensor, rest)
    if rest:
        raise invalid(f"The body has {len(rest)} bytes more than its inputs state in binary_data_size.")
    _refuse(asked.parameters)
    parameters = dict(asked.parameters)
    is_binary = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    wanted: dict[str, bool] = {}
    for output in asked.outputs:
        _refuse(output.parameters)
        wanted[output.name] = _flag(output.parameters.get("binary_data", is_binary), "binary_data")
    return Inference(asked.id, inputs, parameters, wanted, is_binary)


def write_answer(
    head: Mapping[str, Any], outputs: Mapping[str, tuple[str, Texts | Numbers]], asked: Inference
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how many bytes of it are JSON; None if it has no raw bytes.

    Args:
        head: What the answer says of the model.
        outputs: The datatype and the elements of each tensor that the answer shall have, by name.
        asked: The request.
    """
    records: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, (datatype, tensor) in outputs.items():
        record: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(tensor.shape)}
        if asked.wanted.get(name, asked.is_binary):
            raw.append(tensor.to_bytes())
            record["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            record["data"] = tensor.to_json()
        records.append(record)
    answer = {**head, **({} if asked.id is None else {"id": asked.id}), "outputs": records}
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return text + b"".join(raw), len(text) if raw else None


def _to_length(text: str, size: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= size):
        raise invalid(
            f"{HEADER_LENGTH} is not a number of bytes that the body has, after decompression.", HEADER_LENGTH
        )
    return int(text)


def _read_tensor(tensor: InputTensor, rest: memoryview) -> tuple[Texts, memoryview]:
    """Return a tensor, and the raw bytes behind it."""
    _refuse(tensor.parameters)
    if tensor.datatype != "BYTES":
        raise invalid(f"Input {tensor.name!r} must be BYTES, texts in UTF-8, not {tensor.datatype!r:.20}.")
    size = tensor.parameters.get("binary_data_size")
    if (size is None) is (tensor.data is None):
        raise invalid(f"Input {tensor.name!r} needs either data or the parameter binary_data_size.")
    if tensor.data is not None:
        return texts_from_json(tensor.name, tensor.shape, tensor.data), rest
    if type(size) is not int or not 0 <= size <= len(rest):
        raise invalid(f"Input {tensor.name!r} has a binary_data_size that the body does not have.")
    return texts_from_bytes(tensor.name, tensor.shape, rest[:size]), rest[size:]


def _refuse(parameters: Mapping[str, Any]) -> None:
    if refused := next((name for name in _REFUSED if parameters.get(name)), None):
        raise invalid(f"The server does not support the parameter {refused}.", "parameters")


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise invalid(f"The parameter {name} must be true or false.", "parameters")
    return value


def check_names(given: Sequence[str], known: Sequence[str], kind: str) -> None:
    """Raise ProblemError if a request names a tensor that the model does not have."""
    if any(name not in known for name in given):
        raise invalid(f"The model has the {kind} {', '.join(map(repr, known))}, and the request names another.")

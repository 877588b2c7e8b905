"""The file of a part: JSON lines or Parquet, with one record for each row that has an answer."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medvllm.corpora.parquet import import_parquet
from medvllm.corpora.writing.writers import to_json
from medvllm.errors import RequestError
from medvllm.near_names import did_you_mean, near_names

OutputFormat = Literal["parquet", "jsonl"]
FORMATS: tuple[OutputFormat, ...] = ("parquet", "jsonl")

Records = Sequence[dict[str, Any]]

_COVERAGE = {
    "read": ["list", ["list", "int64"]],
    "tokens": "int64",
    "unknown": "int64",
    "windows": "int64",
    "truncated": "bool",
}
_SPAN = {
    "start": "int64",
    "end": "int64",
    "label": "string",
    "score": "float64",
    "text": "string",
    "first_word": "int64",
    "last_word": "int64",
}
_ITEM = {
    "start": "int64",
    "end": "int64",
    "source_start": "int64",
    "source_end": "int64",
    "label": "string",
    "operator": "string",
    "score": "float64",
    "reason": "string",
}
_ASSERTION = {
    **_COVERAGE,
    "start": "int64",
    "end": "int64",
    "label": "string",
    "score": "float64",
    "scores": ["map", "float64"],
    "text": "string",
}
_FILL = {"token": "string", "text": "string", "score": "float64", "id": "int64"}
_SPANS = {**_COVERAGE, "spans": ["list", _SPAN]}
# The columns of each task beside the id. They do not depend on the answers, so all parts have the same ones.
_COLUMNS: dict[str, dict[str, Any]] = {
    "embed": {**_COVERAGE, "vector": "vector"},
    "ner": _SPANS,
    "deid": _SPANS,
    "redact": {**_COVERAGE, "text": "string", "items": ["list", _ITEM]},
    "classify": {**_COVERAGE, "labels": ["list", {"label": "string", "score": "float64"}]},
    "fill-mask": {**_COVERAGE, "gaps": ["list", ["list", _FILL]]},
    "generate": {
        **_COVERAGE,
        "text": "string",
        "finish_reason": "string",
        "usage": {"prompt_tokens": "int64", "completion_tokens": "int64"},
    },
    "assertions": {"assertions": ["list", _ASSERTION]},
}
TASKS = tuple(_COLUMNS)


def check_format(format: str) -> OutputFormat:
    """Return the format of parts.

    Raises:
        RequestError: There is no such format.
        MissingDependencyError: The package that writes it is not installed.
    """
    if format not in FORMATS:
        raise RequestError(
            f"A part has no format {format!r}.{did_you_mean(near_names(format, FORMATS))}\n"
            f"Use one of: {', '.join(FORMATS)}",
            option="output_format",
            value=format,
        )
    if format == "parquet":
        import_parquet()
    return format


def write_json_lines(records: Records) -> bytes:
    """Return the file of a part as JSON lines."""
    return "".join(f"{to_json(record)}\n" for record in records).encode()


def write_parquet(
    records: Records, task: str, *, vector_size: int | None, has_number_ids: bool, facts: Mapping[str, str]
) -> bytes:
    """Return the file of a part as Parquet.

    Args:
        records: The records.
        task: The task.
        vector_size: How many numbers a vector has; None for a task without vectors.
        has_number_ids: Whether ids are whole numbers. Otherwise, they are texts.
        facts: What the metadata of the file says, by name.
    """
    import pyarrow

    parquet = import_parquet()
    columns = {"id": "int64" if has_number_ids else "string", **_COLUMNS[task]}
    if vector_size is not None:
        columns["vector"] = ["vector", vector_size]
    schema = pyarrow.schema([(name, _type_of(kind)) for name, kind in columns.items()], dict(facts))
    if not has_number_ids:
        records = [record | {"id": str(record["id"])} for record in records]
    table = pyarrow.Table.from_pylist(list(map(_with_pairs, records)), schema)
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def _type_of(kind: Any) -> Any:
    import pyarrow

    if isinstance(kind, str):
        return getattr(pyarrow, "bool_" if kind == "bool" else kind)()
    if isinstance(kind, dict):
        return pyarrow.struct([(name, _type_of(each)) for name, each in kind.items()])
    word, inner = kind
    if word == "vector":
        return pyarrow.list_(pyarrow.float32(), inner)
    return pyarrow.list_(_type_of(inner)) if word == "list" else pyarrow.map_(pyarrow.string(), _type_of(inner))


def _with_pairs(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose scores by label are pairs, as pyarrow takes them."""
    if "assertions" not in record:
        return record
    return record | {"assertions": [each | {"scores": list(each["scores"].items())} for each in record["assertions"]]}

"""Examples of answers, and the JSON schema that follows from them: what is documented is what is shown."""

from collections.abc import Collection, Sequence
from typing import Any

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


class Map(dict[str, Any]):
    """An object whose keys are data, such as labels, and not names of fields."""


def answer_of(*examples: Any, optional: Collection[str] = (), events: str | None = None) -> dict[str, Any]:
    """Return the description of a good answer, for a route's `responses`.

    Args:
        *examples: Whole answers, which differ where answers do: what is null in one, a field that another lacks.
        optional: The names of further fields that may be missing.
        events: The answer when it is streamed, as server-sent events; None if it never is.
    """
    [first, *others] = examples
    shown: dict[str, Any] = {"example": first}
    if others:
        shown = {"examples": {str(number): {"value": value} for number, value in enumerate(examples, 1)}}
    content = {"application/json": {"schema": schema_of(examples, optional), **shown}}
    if events is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}, "example": events}
    return {"content": content}


def schema_of(values: Sequence[Any], optional: Collection[str] = ()) -> dict[str, Any]:
    """Return the JSON schema of values. A field that one of them lacks may be missing, and others may be there."""
    kinds = dict.fromkeys(_type_of(value) for value in values)
    if {"integer", "number"} <= set(kinds):
        del kinds["integer"]
    schema: dict[str, Any] = {"type": next(iter(kinds)) if len(kinds) == 1 else list(kinds)}
    objects = [value for value in values if isinstance(value, dict)]
    if maps := [value for value in objects if isinstance(value, Map)]:
        schema["additionalProperties"] = schema_of([item for value in maps for item in value.values()], optional)
    elif objects:
        names = dict.fromkeys(name for value in objects for name in value)
        properties = {name: schema_of([value[name] for value in objects if name in value], optional) for name in names}
        required = [name for name in names if name not in optional and all(name in value for value in objects)]
        schema |= {"properties": properties, "required": required}
    if items := [item for value in values if isinstance(value, list) for item in value]:
        schema["items"] = schema_of(items, optional)
    return schema


def _type_of(value: Any) -> str:
    if isinstance(value, dict):
        return "object"
    return "array" if isinstance(value, list) else _TYPES[type(value)]

"""JSON as the server accepts it: what two programs could read in two ways is refused."""

import json
import re
from typing import Any, NoReturn

from medvllm.spelling import has_lone_surrogate

MAX_DEPTH = 32  # of lists and objects in each other
_BRACKETS = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]'  # and texts, whose brackets are none


class JSONError(ValueError):
    """The bytes are no JSON that the server accepts. The message never quotes them."""


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        JSONError: It is not UTF-8 or not JSON, repeats a key, nests too deeply, has NaN, an infinity or a number that a
            double cannot hold, or has half of a surrogate pair.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JSONError(f"The body is not UTF-8: byte {error.start} cannot be decoded") from None
    if text.startswith("\ufeff"):
        raise JSONError("The body begins with a byte order mark, which JSON does not allow")
    _check_depth(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_to_object,
            parse_constant=_refuse_constant,
            parse_float=_to_float,
            parse_int=_to_int,
        )
    except JSONError:
        raise
    except json.JSONDecodeError as error:
        raise JSONError(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    if "\\ud" in text.lower() and _has_lone_surrogate(value):
        raise JSONError("The body has a text with half of a surrogate pair, which is no character")
    return value


def _check_depth(text: str) -> None:
    depth = 0
    for found in re.finditer(_BRACKETS, text, re.DOTALL):
        if (bracket := found[0][0]) in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise JSONError(f"The body has lists and objects in each other that are more than {MAX_DEPTH} deep")
        elif bracket in "]}":
            depth -= 1


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise JSONError("The body has an object with the same key twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise JSONError(f"The body has {name}, which is not JSON")


def _to_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise JSONError("The body has a number that is too large")
    return number


def _to_int(text: str) -> int:
    if len(text) > 20:
        raise JSONError("The body has a number that is too large")
    return int(text)


def _has_lone_surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return has_lone_surrogate(value)
    if isinstance(value, dict):
        return any(has_lone_surrogate(key) or _has_lone_surrogate(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_has_lone_surrogate, value))

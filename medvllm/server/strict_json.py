"""JSON as the server accepts it: what two programs could read in two ways is refused."""

import json
import re
from typing import Any, NoReturn

from medvllm.spelling import has_lone_surrogate

MAX_DEPTH = 32  # of lists and objects in each other
MAX_VALUES = 500_000  # many more than a request with as many texts as the server takes
# A text, also one that does not end: without that, each quote in it would be tried as the first one of another text.
_TEXT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^][{}]+")
_PAIR = re.compile(r"\[\]|\{\}")
_MAY_BE_TOO_LARGE = re.compile(r"[0-9]{21}|[eE]\+?[0-9]{3}")


class JSONError(ValueError):
    """The bytes are no JSON that the server accepts. The message never quotes them."""


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    The time that it takes grows with the text, and no faster, whatever is in it.

    Raises:
        JSONError: It is not UTF-8 or not JSON, repeats a key, nests too deeply, has too many values, has NaN, an
            infinity or a number that a double cannot hold, or has half of a surrogate pair.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JSONError(f"The body is not UTF-8: byte {error.start} cannot be decoded") from None
    if text.startswith("\ufeff"):
        raise JSONError("The body begins with a byte order mark, which JSON does not allow")
    frame = _TEXT.sub("", text)
    if frame.count(",") >= MAX_VALUES:
        raise JSONError(f"The body has more than {MAX_VALUES:,} values")
    # Functions of our own for each number take most of the time.
    is_checked = _MAY_BE_TOO_LARGE.search(frame) is not None
    numbers: dict[str, Any] = {"parse_float": _to_float, "parse_int": _to_int} if is_checked else {}
    try:
        value = json.loads(text, object_pairs_hook=_to_object, parse_constant=_refuse_constant, **numbers)
    except JSONError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as error:
        raise JSONError(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    _check_depth(frame)
    if "\\ud" in text.lower() and _has_lone_surrogate(value):
        raise JSONError("The body has a text with half of a surrogate pair, which is no character")
    return value


def _check_depth(frame: str) -> None:
    """Raise JSONError if lists and objects are too deep in each other. `frame` is JSON without its texts."""
    brackets = _NO_BRACKETS.sub("", frame)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = _PAIR.sub("", brackets)  # those that have no other in them
    if brackets:
        raise _too_deep()


def _too_deep() -> JSONError:
    return JSONError(f"The body has lists and objects in each other that are more than {MAX_DEPTH} deep")


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

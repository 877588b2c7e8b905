"""A call of a server: what is sent, and how its answer is read."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from medvllm.client.answers import read_result
from medvllm.client.options import OF_REQUEST
from medvllm.errors import RequestError

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request.

    Attributes:
        method: The HTTP method.
        path: The path.
        read: Returns the result from the content of the answer.
        content: What is sent; None for nothing.
        timeout_s: Seconds for the call; None for those of the client.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    content: dict[str, Any] | None = None
    timeout_s: float | None = None

    def body(self, left_s: float) -> bytes | None:
        """Return the JSON to send.

        Args:
            left_s: The seconds that are left for the call. The server ends it then, too.

        Raises:
            RequestError: A value cannot be sent. The message does not contain it.
        """
        if self.content is None:
            return None
        content = self.content | ({"timeout_s": left_s} if "texts" in self.content else {})
        why = None
        try:
            return json.dumps(content, allow_nan=False, default=_to_json).encode()
        except (ValueError, RecursionError):  # raised below, without this one: it may quote a text
            why = "NaN, infinity, or an object that contains itself"
        except TypeError as error:
            why = str(error) if isinstance(error, _UnsentError) else "an object whose keys are no texts"
        raise RequestError(f"The arguments have {why}, which cannot be sent.")


def task_call(
    task: str | None, model: str, texts: Iterable[Any], options: Mapping[str, Any], *, stream: bool = False
) -> Call[Any]:
    """Return the call that runs a task.

    Args:
        task: The task; None for the model's own one.
        model: The name of the model.
        texts: The texts.
        options: The options of the task and of the request.
        stream: Whether the answer comes piece by piece.
    """
    given = {name: value for name, value in options.items() if value is not None}
    timeout_s = given.pop("timeout_s", None)
    content: dict[str, Any] = {"model": model, "task": task, "texts": _to_list(texts)}
    content |= {word: given.pop(name) for name, word in OF_REQUEST.items() if name in given}
    content |= {"arguments": given} | ({"stream": True} if stream else {})
    return Call("POST", "/v1/run", read_result, content, timeout_s)


def model_call(name: str) -> Call[dict[str, Any]]:
    """Return the call that asks what is known of a model."""
    return Call("GET", f"/v1/models/{quote(name)}", dict)


def page_call(after: str | None) -> Call[dict[str, Any]]:
    """Return the call that asks for the models behind a name."""
    return Call("GET", f"/v1/models?limit={_PAGE}" + ("" if after is None else f"&after={quote(after, safe='')}"), dict)


def loaded_call() -> Call[list[dict[str, Any]]]:
    """Return the call that asks for the models in memory."""
    return Call("GET", "/v1/memory", lambda content: list(content["models"]))


def load_call(name: str, keep_alive: float | str | None) -> Call[dict[str, Any]]:
    """Return the call that loads a model."""
    return Call("POST", "/v1/load", dict, {"model": name} | ({} if keep_alive is None else {"keep_alive": keep_alive}))


def unload_call(name: str) -> Call[int]:
    """Return the call that unloads the models of an entry."""
    return Call("POST", "/v1/unload", lambda content: int(content["models"]), {"model": name})


_PAGE = 1000


class _UnsentError(TypeError):
    """A value has no form in JSON."""


def _to_list(texts: Iterable[Any]) -> list[Any]:
    if isinstance(texts, str | bytes):
        raise RequestError("The texts must be a list, not one text.\nWrite it as: [text]")
    return list(texts)


def _to_json(value: Any) -> Any:  # of any type that a caller may have
    """Return a span, an array or a number of NumPy, or another mapping or series, as JSON has it."""
    if hasattr(value, "start") and hasattr(value, "end"):
        return {"start": value.start, "end": value.end}
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise _UnsentError(f"a value of type {type(value).__name__}")

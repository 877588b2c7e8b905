"""What the APIs of other servers have, and this one cannot do. It is refused, as the answer would be a wrong one."""

from collections.abc import Mapping
from typing import Any

from medvllm.server.problem import Problem, ProblemError

Refused = Mapping[str, tuple[Any, ...]]  # keys, each with the values that ask for nothing


def refuse_others(given: Mapping[str, Any] | None, refused: Refused) -> None:
    """Raise ProblemError if a request has a key that would change its answer, and that the server does not know.

    Args:
        given: The keys of the request beside those that the server knows.
        refused: Keys that other servers know, each with the values that ask for nothing.
    """
    for key, value in (given or {}).items():
        if value is not None and key in refused and not _is_any_of(value, refused[key]):
            message = f"The server cannot do what {key!r} asks for.\nLeave it out."
            raise ProblemError(Problem(400, "unsupported_parameter", message, key))


def _is_any_of(value: Any, others: tuple[Any, ...]) -> bool:
    """Return whether a value is one of others. True is not 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in others)

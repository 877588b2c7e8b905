"""Fields of a request that have several names, as several servers call them."""

from collections.abc import Mapping
from typing import Any

from medvllm.server.problem import Problem, ProblemError


def one_of(given: Mapping[str, Any]) -> Any:
    """Return what a request gives under any of the names of one field; None if it gives nothing.

    Args:
        given: What it gives under each name.

    Raises:
        ProblemError: It gives different things under two of them.
    """
    found = [(name, value) for name, value in given.items() if value is not None]
    for name, value in found[1:]:
        if value != found[0][1]:
            message = f"{found[0][0]} and {name} are two names of one field, and differ.\nSend one of them."
            raise ProblemError(Problem(422, "invalid_request", message, found[0][0]))
    return found[0][1] if found else None


def merge(beside: dict[str, Any], within: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request, which may stand beside its inputs or within `parameters`.

    Args:
        beside: Those beside its inputs.
        within: Those within `parameters`.

    Raises:
        ProblemError: One stands in both places, and differs.
    """
    return {name: one_of({name: beside.get(name), f"parameters.{name}": within.get(name)}) for name in beside | within}

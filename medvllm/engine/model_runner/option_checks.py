"""Checks of the options of tasks. They need no model, so they come before a load."""

from collections.abc import Collection
from typing import Any

from medvllm.engine.model_runner.reading.windows import LONG_INPUTS
from medvllm.errors import RequestError
from medvllm.near_names import did_you_mean, near_names


def check_count(option: str, value: object) -> None:
    """Raise RequestError unless a value is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise RequestError(f"{option} must be at least 1, not {repr(value)[:80]}.", option=option)


def check_choice(option: str, value: Any, choices: Collection[str]) -> None:
    """Raise RequestError unless a value is one of several words."""
    if isinstance(value, str) and value in choices:
        return
    near = did_you_mean(near_names(value, choices)) if isinstance(value, str) else ""
    raise RequestError(
        f"{option} must be one of {', '.join(map(repr, choices))}, not {repr(value)[:80]}.{near}", option=option
    )


def check_long_input(value: object) -> None:
    """Raise RequestError unless a value says what becomes of a long text; None leaves it to the entry."""
    if value is not None:
        check_choice("long_input", value, LONG_INPUTS)


def check_flag(option: str, value: object) -> None:
    """Raise RequestError unless a value is True or False."""
    if type(value) is not bool:
        raise RequestError(f"{option} must be True or False, not {repr(value)[:80]}.", option=option)

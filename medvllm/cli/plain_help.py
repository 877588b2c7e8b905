"""Commands that start fast, with help texts that name the values of options by words such as TASK, not <list[str]>."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command with a plain help text."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _name_values(_take_texts(super().get_params(ctx)))


class Group(TyperGroup):
    """A group of commands with a plain help text."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _name_values(_take_texts(super().get_params(ctx)))


class _Unchecked:
    """Stands for typer's check of a value where there is nothing to check: no value, a text, or a list of texts.

    typer checks every value with pydantic, also one that was not given. Importing pydantic takes several times as long
    as a listing.
    """

    def __init__(self, parameter: Any) -> None:
        self._check = parameter.get_runtime_param  # typer's own, which imports pydantic
        self._kind = parameter.type_descriptor.annotation

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value in the type that the command expects."""
        is_many = param.multiple or param.nargs == -1
        if value is None:
            return () if is_many else None
        if self._kind is str and isinstance(value, str):
            return value
        if is_many and self._kind == list[str] and isinstance(value, list | tuple):
            return list(value)
        return self._check().coerce(value, param=param, ctx=ctx)


def _take_texts(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if "get_runtime_param" not in vars(parameter):
            unchecked = _Unchecked(parameter)
            parameter.get_runtime_param = lambda unchecked=unchecked: unchecked
    return parameters


def _name_values(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if parameter.param_type_name == "option" and parameter.metavar is None:
            parameter.metavar = "" if parameter.is_flag else _word(parameter.opts)
    return parameters


def _word(options: list[str]) -> str:
    return max(options, key=len).lstrip("-").upper().replace("-", "_")

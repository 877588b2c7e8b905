"""Help texts that name the values of options by words such as TASK, instead of Python types such as <list[str]>."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command with a plain help text."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _name_values(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands with a plain help text."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _name_values(super().get_params(ctx))


def _name_values(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if parameter.param_type_name == "option" and parameter.metavar is None:
            parameter.metavar = "" if parameter.is_flag else _word(parameter.opts)
    return parameters


def _word(options: list[str]) -> str:
    return max(options, key=len).lstrip("-").upper().replace("-", "_")

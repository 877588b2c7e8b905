"""The options of `medvllm run` and `medvllm batch` that a task takes as arguments."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from medvllm.errors import RequestError


def check_options(task: str, given: Mapping[str, Any]) -> None:
    """Raise a usage error if a task does not take an option that was given, or needs one that was not.

    Args:
        task: A task.
        given: The arguments that the options stand for. The option of argument top_k is --top-k.
    """
    from medvllm.engine.model_runner.corpus_run import EXTRA_COLUMNS, SET_FOR_EACH_TEXT
    from medvllm.engine.model_runner.tasks import TASKS, check_task, parameters_of

    if task not in TASKS:
        check_task(task, {})  # raises the error for a task that does not exist
    own = {*SET_FOR_EACH_TEXT, EXTRA_COLUMNS.get(task)}
    known = {name: each for name, each in parameters_of(task).items() if name not in own}
    if unknown := next((name for name in given if name not in known), None):
        options = ", ".join(map(option_of, known)) or "none"
        raise typer.BadParameter(f"task {task!r} takes no {option_of(unknown)}. Its options: {options}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in given:
            raise typer.BadParameter(f"task {task!r} needs {option_of(name)}")


def given_arguments(
    *, operators: str | None, labels: list[str] | None, allow_special_tokens: bool, **others: Any
) -> dict[str, Any]:
    """Return the arguments of a task that were given as options."""
    options = {
        **{name: None if value == [] else value for name, value in others.items()},
        "labels": split_labels(labels) if labels else None,
        "operators": parse_operators(operators) if operators is not None else None,
        "allow_special_tokens": allow_special_tokens or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def option_of(argument: str) -> str:
    """Return the option for an argument of a task."""
    return f"--{argument.replace('_', '-')}"


def parse_operators(text: str) -> Any:
    """Return the value of --operators: JSON, or @ and the path of a file with JSON.

    Raises:
        RequestError: The file cannot be read. The message has nothing of its content, which may be a key.
        typer.BadParameter: It is not JSON.
    """
    if text.startswith("@"):
        file = Path(text[1:])
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            raise RequestError(f"Operators cannot be read from {str(file)!r}: {error.strerror}.") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    raise typer.BadParameter(
        'it is not JSON. Write it as: \'{"DEFAULT": {"type": "replace"}}\', or as @FILE', param_hint="--operators"
    )


def split_labels(texts: list[str]) -> list[str]:
    """Return the labels of --labels, which may be given several times, or once with commas."""
    return [label.strip() for text in texts for label in text.split(",") if label.strip()]

"""Arguments and options that several commands share."""

from typing import Annotated, Any, Literal

import typer

from medvllm.cli.completion import model_names

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str | None, typer.Option(help="Why; the history keeps it.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A registered name, a repository (org/repo) or a folder (./folder).",
        autocompletion=model_names,
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, mps or auto.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")]


def load_options(device: str | None, dtype: str | None) -> dict[str, Any]:
    """Return the load options that were given."""
    return {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}


_PAIRS = {
    "--fact": "FACT=VALUE, for example license=mit",
    "--tag": "KEY=VALUE, for example owner=radiology",
    "--redaction-key": "NAME=FILE, for example study=study.key",
}


def split_pair(text: str, option: Literal["--fact", "--tag", "--redaction-key"]) -> tuple[str, str]:
    """Return the two sides of a text such as FACT=VALUE, or raise a usage error."""
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise typer.BadParameter(f"{text!r} is not {_PAIRS[option]}", param_hint=option)
    return key, value


def split_tags(texts: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the plain tags, and the values of those that are written as KEY=VALUE."""
    values = dict(split_pair(text, "--tag") for text in texts if "=" in text)
    return [text for text in texts if "=" not in text], values

"""`medvllm export` and `medvllm import`: models in one file, for sites without a network."""

from pathlib import Path
from typing import Annotated

import typer

from medvllm.cli.output import megabytes, printable
from medvllm.model_registry import registry


def export(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models to put into the bundle.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
) -> None:
    """Write models with their files and their lock into one bundle. The same models give the same bytes."""
    exported = registry.export(output, *names)
    typer.echo(f"Exported {_quoted(exported)} to {output}: {megabytes(output.stat().st_size)}.")


def import_(
    file: Annotated[Path, typer.Argument(metavar="BUNDLE", help="File that medvllm export wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Take models that are not the locked ones.")] = False,
) -> None:
    """Check every byte of a bundle, then make its models this machine's and lock them."""
    typer.echo(f"Imported {_quoted(registry.import_bundle(file, replace=replace))} from {file}.")


def _quoted(names: list[str]) -> str:
    return ", ".join(repr(printable(name)) for name in names)

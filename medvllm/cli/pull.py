"""`medvllm pull`: download the files of models."""

import time
from typing import Annotated

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.output import printable
from medvllm.model_registry import registry
from medvllm.quantities import shown_size


def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Models to download.", autocompletion=model_names)],
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask the Hub again which commit a branch or tag points to.")
    ] = False,
) -> None:
    """Download the files of models, so that they load without a network. Loads nothing."""
    for name in names:
        start = time.perf_counter()
        folder = registry.pull(name, refresh=refresh)
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = shown_size(sum(file.stat().st_size for file in files))
        seconds = time.perf_counter() - start
        typer.echo(f"Fetched {printable(name)!r}: {len(files)} files, {size}, in {seconds:.1f} s, to {folder}")

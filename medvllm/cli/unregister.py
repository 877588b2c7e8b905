"""`medvllm unregister`: remove a stored model, or one version of it."""

from typing import Annotated

import typer

from medvllm.cli.completion import stored_names
from medvllm.cli.output import printable
from medvllm.cli.parameters import Reason
from medvllm.model_registry import registry
from medvllm.names import parse_name


def unregister(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]", autocompletion=stored_names, help="A stored entry, or one version of it."
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Remove it even if an alias points to it or a process uses it.")
    ] = False,
    reason: Reason = None,
) -> None:
    """Remove a stored model with all its versions, or one version. A version number is never used again."""
    removed = registry.catalog.remove(name, force=force, reason=reason)
    which = f"version {removed[0]}" if len(removed) == 1 else f"versions {', '.join(map(str, removed))}"
    typer.echo(f"Unregistered {printable(parse_name(name).name)!r}, {which}.")

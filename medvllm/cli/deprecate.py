"""`medvllm deprecate`: mark a stored model as deprecated."""

from typing import Annotated

import typer

from medvllm.cli.completion import stored_names
from medvllm.cli.output import printable
from medvllm.model_registry import registry


def deprecate(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]", autocompletion=stored_names, help="A stored entry, or one version of it."
        ),
    ],
    successor: Annotated[str | None, typer.Option(metavar="NAME", help="The model to use instead.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; each load logs it.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Remove the deprecation.")] = False,
) -> None:
    """Mark a stored model as deprecated. Each load then logs a warning that names the successor."""
    if successor is not None:
        registry.get_metadata(successor)  # raises an error with similar names if there is none
    if off and successor:
        raise typer.BadParameter("pass --successor or --off, not both")
    if not (off or successor or reason):
        raise typer.BadParameter("pass --successor, --reason or --off")
    facts = {"deprecated": None if off else reason or "no reason is given", "successor": None if off else successor}
    for entry in registry.catalog.update(name, reason=reason, **facts):
        typer.echo(f"{'No longer deprecated' if off else 'Deprecated'}: {printable(entry.reference)}")

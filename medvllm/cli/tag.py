"""`medvllm tag`: the tags and values of a stored version."""

from typing import Annotated

import typer

from medvllm.cli.completion import stored_names
from medvllm.cli.output import printable
from medvllm.cli.parameters import Reason, split_tags
from medvllm.model_registry import registry


def tag(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", autocompletion=stored_names, help="A stored entry.")],
    tags: Annotated[list[str] | None, typer.Argument(metavar="TAG", help="A tag to add, or KEY=VALUE.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="A tag or key to remove; may be repeated.")
    ] = None,
    reason: Reason = None,
) -> None:
    """Add tags and KEY=VALUE pairs to a version, or remove them. Prints all that it has afterwards."""
    names, values = split_tags(tags or [])
    entry = registry.catalog.tag(
        name, add={**dict.fromkeys(names), **values}, remove=tuple(remove or ()), reason=reason
    )
    shown = [*entry.tags, *(f"{key}={value}" for key, value in entry.values.items())]
    typer.echo(f"{printable(entry.reference)}: {printable(', '.join(shown)) if shown else 'no tags'}")

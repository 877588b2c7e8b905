"""`medvllm diff`: the differences between two entries, or between two versions of one."""

import hashlib
import json
from typing import Annotated, Any

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.output import print_json, print_table
from medvllm.cli.parameters import Json
from medvllm.model_registry import registry
from medvllm.one_line import one_line


def diff(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME@VERSION",
            help="The first entry, for example ner@1.",
            autocompletion=model_names,
        ),
    ],
    other: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The second entry.", autocompletion=model_names)],
    as_json: Json = False,
) -> None:
    """Show the facts that differ between two versions, and the files if the lock file has both versions."""
    found = registry.diff(name, other)
    if as_json:
        print_json([difference.to_dict() for difference in found])
        return
    if not found:
        typer.echo("There are no differences.", err=True)
    rows = ((each.what, _format_value(each.what, each.before), _format_value(each.what, each.after)) for each in found)
    print_table(("FACT", name, other), rows)


def _format_value(what: str, value: Any) -> object:
    """Return a value in a few words."""
    if what == "baseline" and value:
        # The cases are too long to print; a digest tells two sets of equal size apart.
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        return f"{len(value)} test{'' if len(value) == 1 else 's'} ({digest[:7]})"
    return one_line(value, "; ")

"""`medvllm diff`: what differs between two entries, or two versions of one."""

import hashlib
import json
from typing import Annotated, Any

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.output import one_line, print_json, print_table
from medvllm.cli.parameters import Json
from medvllm.model_registry import registry


def diff(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME@VERSION", help="An entry, with a version or an alias.", autocompletion=model_names
        ),
    ],
    other: Annotated[
        str, typer.Argument(metavar="NAME@VERSION", help="The one to compare it with.", autocompletion=model_names)
    ],
    as_json: Json = False,
) -> None:
    """Show what differs between two versions, fact by fact; files too, where the lock has both."""
    found = registry.diff(name, other)
    if as_json:
        print_json([difference.to_dict() for difference in found])
        return
    if not found:
        typer.echo("Nothing differs.", err=True)
    rows = ((each.what, _shown(each.what, each.before), _shown(each.what, each.after)) for each in found)
    print_table(("FACT", name, other), rows)


def _shown(what: str, value: Any) -> object:
    """Return a value in a few words."""
    if what == "baseline" and value:
        # Their inputs and outputs are long, and two sets of equal number are to look different.
        digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        return f"{len(value)} test{'' if len(value) == 1 else 's'} ({digest[:7]})"
    return one_line(value, "; ")

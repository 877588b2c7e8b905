"""`medvllm verify`: check that the files of locked models are the approved ones."""

from typing import Annotated

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.output import print_findings
from medvllm.cli.parameters import Json
from medvllm.errors import SourceError
from medvllm.model_registry import registry
from medvllm.sources import Lock


def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", autocompletion=model_names, help="Locked models; all when left out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Hash the files of locked models again and print what differs. Uses no network. Exit code 1 if a file differs."""
    flaws = registry.verify(*(names or ()))
    if not flaws:
        raise _nothing_verified()
    print_findings(flaws, "everything", as_json=as_json)


def _nothing_verified() -> SourceError:
    """Return the error of a check that checked nothing: it must not look like success."""
    file = Lock.current().file
    return SourceError(
        f"Nothing was verified: lock file '{file}' {'names no model' if file.exists() else 'does not exist'}.\n"
        "Approve a model first: medvllm lock NAME",
        path=str(file),
    )

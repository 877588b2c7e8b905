"""`medvllm lock` and `medvllm verify`: approve a model's bytes, and prove that they are still those."""

from typing import Annotated

import typer

from medvllm import settings
from medvllm.cli.models import Json
from medvllm.cli.output import print_json, print_table, printable
from medvllm.registry import registry


def lock(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models to approve.")]) -> None:
    """Approve models as they are: write commit, size and SHA-256 of every file to the lock file (MEDVLLM_LOCK)."""
    for name, model in registry.lock(*names).items():
        size_mb = sum(digest.size for digest in model.files.values()) / 1e6
        at = f" at {model.commit[:7]}" if model.commit else ""
        typer.echo(f"Locked {printable(name)!r}{at}: {len(model.files)} files, {size_mb:,.1f} MB, in {settings.LOCK()}")


def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Locked models; else all.")] = None,
    as_json: Json = False,
) -> None:
    """Hash the files of locked models again and say which differ; without network. Exit code 1 when one does."""
    flaws = registry.verify(*names or ())
    if as_json:
        print_json(flaws)
    else:
        rows = [
            (name, file, flaw) for name, files in flaws.items() for file, flaw in (files or {"all files": "ok"}).items()
        ]
        print_table(("MODEL", "FILE", "STATE"), rows)
    if any(flaws.values()):
        raise typer.Exit(1)

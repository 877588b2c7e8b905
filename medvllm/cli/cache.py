"""`medvllm cache list` and `medvllm cache prune`: what is kept on the disk, who uses it, and freeing the rest."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvllm.cli.output import print_json, print_table
from medvllm.cli.parameters import Json
from medvllm.model_registry import registry
from medvllm.quantities import shown_size

if TYPE_CHECKING:
    from medvllm.sources.store import Kept, Users

app = typer.Typer(help="See and free the disk that models take.", no_args_is_help=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List what is kept in MEDVLLM_HOME and in the Hub's cache: its size, its last use, and who uses it.

    Models taken or imported, converted pickles, copies in another dtype, and what dead processes have left.
    """
    from medvllm.sources import store

    found = store.kept(_users())
    if as_json:
        print_json([each.to_dict() | {"is_removable": each.is_removable} for each in found])
        return
    print_table(("KIND", "NAME", "SIZE", "LAST USE", "USED BY"), [_row(each) for each in found])
    free = sum(each.size_bytes for each in found if each.is_removable)
    typer.echo(f"In all: {_sum(found)}. Unused: {shown_size(free)}.", err=True)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove from MEDVLLM_HOME what no entry of the catalogue, no lock and no running process uses.

    The Hub's cache is other programs' too, and stays: see hf cache prune.
    """
    from medvllm.sources import store

    removed = store.prune(_users(), dry_run=dry_run)
    if as_json:
        print_json([each.to_dict() for each in removed])
        return
    print_table(("KIND", "NAME", "SIZE", "LAST USE"), [_row(each)[:-1] for each in removed])
    typer.echo(f"{'Would free' if dry_run else 'Freed'} {_sum(removed)}.", err=True)


def _users() -> "Users":
    from medvllm.sources.store import Users

    entries = {entry.reference: entry for entry in registry.list_models().values()}
    for name in registry.catalog.names():
        entries |= {entry.reference: entry for entry in registry.catalog.versions(name).values()}
    running = [(str(note.process), model["snapshot"]) for note in registry.list_processes() for model in note.models]
    return Users(entries, running)


def _row(each: "Kept") -> tuple[Any, ...]:
    used = datetime.fromtimestamp(each.last_used, UTC).strftime("%Y-%m-%d") if each.last_used else "-"
    users = ", ".join(each.used_by[:3]) + (f" and {len(each.used_by) - 3} more" if len(each.used_by) > 3 else "")
    return each.kind, each.name, shown_size(each.size_bytes), used, users or "nobody"


def _sum(found: "Iterable[Kept]") -> str:
    return shown_size(sum(each.size_bytes for each in found))

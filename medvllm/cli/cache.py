"""`medvllm cache`: what medvllm keeps on the disk, who uses it, and how to free the rest."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medvllm.cli.output import print_json, print_table
from medvllm.cli.parameters import Json
from medvllm.model_registry import registry
from medvllm.quantities import shown_size

if TYPE_CHECKING:
    from medvllm.sources.disk_usage import DiskItem
    from medvllm.sources.disk_users import Users

app = typer.Typer(help="Show and free the disk space of models.", no_args_is_help=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List what MEDVLLM_HOME and the Hub's cache contain, with the size, the last use and the users.

    These are copied and imported models, converted pickles, copies in another dtype, and leftovers of dead processes.
    """
    from medvllm.sources import disk_usage

    found = disk_usage.list_items(_users())
    if as_json:
        print_json([each.to_dict() | {"is_removable": each.is_removable} for each in found])
        return
    print_table(("KIND", "NAME", "SIZE", "LAST USE", "USED BY"), [_row(each) for each in found])
    free = sum(each.size_bytes for each in found if each.is_removable)
    typer.echo(f"Total: {_total(found)}. Unused: {shown_size(free)}.", err=True)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove from MEDVLLM_HOME what no entry in the catalogue, no lock and no running process uses.

    The Hub's cache stays, because other programs use it, too. To prune it, run: hf cache prune
    """
    from medvllm.sources import disk_usage

    removed = disk_usage.prune(_users(), dry_run=dry_run)
    if as_json:
        print_json([each.to_dict() for each in removed])
        return
    print_table(("KIND", "NAME", "SIZE", "LAST USE"), [_row(each)[:-1] for each in removed])
    typer.echo(f"{'Would free' if dry_run else 'Freed'} {_total(removed)}.", err=True)


def _users() -> "Users":
    from medvllm.sources.disk_users import Users

    entries = {entry.reference: entry for entry in registry.list_models().values()}
    for name in registry.catalog.names():
        entries |= {entry.reference: entry for entry in registry.catalog.versions(name).values()}
    running = [(str(each.process), model["snapshot"]) for each in registry.list_processes() for model in each.models]
    return Users(entries, running)


def _row(each: "DiskItem") -> tuple[Any, ...]:
    used = datetime.fromtimestamp(each.last_used, UTC).strftime("%Y-%m-%d") if each.last_used else "-"
    users = ", ".join(each.used_by[:3]) + (f" and {len(each.used_by) - 3} more" if len(each.used_by) > 3 else "")
    return each.kind, each.name, shown_size(each.size_bytes), used, users or "nothing"


def _total(found: "Iterable[DiskItem]") -> str:
    return shown_size(sum(each.size_bytes for each in found))

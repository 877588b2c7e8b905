"""`medvllm catalog`: the stored catalogue as a file, and its schema."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from medvllm.cli.history import described
from medvllm.cli.output import print_json, printable
from medvllm.cli.parameters import Json, Reason
from medvllm.cli.streams import write_utf8
from medvllm.errors import CatalogError
from medvllm.model_registry import registry

app = typer.Typer(help="Keep the stored catalogue as a file; migrate its database.", no_args_is_help=True)


@app.command("init")
def init() -> None:
    """Make the catalogue that MEDVLLM_CATALOG names: an empty file, or the tables on a server."""
    made = registry.catalog.create()
    where = printable(registry.catalog.where)
    typer.echo(f"Made catalogue {where}." if made else f"Catalogue {where} already exists.")


@app.command("export")
def export() -> None:
    """Print all stored entries, versions and aliases as TOML, for `medvllm catalog apply`."""
    write_utf8(registry.catalog.export())


@app.command("apply")
def apply(
    file: Annotated[Path, typer.Argument(help="The file that says what is to be there; - is standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would change.")] = False,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Make the stored catalogue what a file says, in one transaction: + added, ~ changed, - removed."""
    try:
        text = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{str(file)!r} is not UTF-8: byte {error.start + 1:,} cannot be read.") from error
    lacking: list[str] = []
    if dry_run:
        events, lacking = registry.catalog.plan(text, reason=reason)
    else:
        events = registry.catalog.apply(text, reason=reason)
    if as_json:
        print_json([event.to_dict() for event in events])
        return
    for event in events:
        typer.echo(printable(described(event)))
    count = f"{len(events)} change{'' if len(events) == 1 else 's'}"
    typer.echo(f"{count} would be made." if dry_run else f"{count}.", err=True)
    if lacking:
        typer.echo("It would be refused as it stands:\n  " + "\n  ".join(lacking), err=True)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of such files, by which editors complete and check them."""
    write_utf8(files("medvllm.catalog").joinpath("entries.schema.json").read_text(encoding="utf-8"))


@app.command("migrate")
def migrate(
    to: Annotated[str | None, typer.Option(help="An earlier schema, for an earlier program.")] = None,
) -> None:
    """Bring the database to this program's schema; an embedded one is migrated by itself, after a backup."""
    from medvllm.catalog.sql.schema import HEAD

    after = to or HEAD
    before, backup = registry.catalog.migrate(after)
    typer.echo(f"Schema {before or 'none'} -> {after}." if before != after else f"The schema is {after} already.")
    if backup is not None:
        typer.echo(f"Before: {backup}", err=True)

"""`medvllm catalog`: the stored catalogue as a file, and its schema."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from medvllm.catalog.event_words import describe_event
from medvllm.cli.output import print_json, printable
from medvllm.cli.parameters import Json, Reason
from medvllm.cli.streams import write_utf8
from medvllm.errors import CatalogError
from medvllm.model_registry import registry

app = typer.Typer(help="Create, export, change and migrate the stored catalogue.", no_args_is_help=True)


@app.command("init")
def init() -> None:
    """Create the catalogue that MEDVLLM_CATALOG names: an empty file, or the tables on a server."""
    created = registry.catalog.create()
    where = printable(registry.catalog.where)
    typer.echo(f"Created catalogue {where}." if created else f"Catalogue {where} already exists.")


@app.command("export")
def export() -> None:
    """Print all stored entries, versions and aliases as TOML, for `medvllm catalog apply`."""
    write_utf8(registry.catalog.export())


@app.command("apply")
def apply(
    file: Annotated[Path, typer.Argument(help="The TOML file, as export prints it; - reads standard input.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    reason: Reason = None,
    as_json: Json = False,
) -> None:
    """Make the stored catalogue equal to a file, in one transaction, and print the changes.

    + is added, ~ changed, - removed. Names that the file does not have are removed: use --dry-run first.
    """
    try:
        text = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"File {str(file)!r} is not UTF-8: byte {error.start + 1:,} is invalid.") from error
    obstacles: list[str] = []
    shown = "Standard input" if str(file) == "-" else f"File {str(file)!r}"
    if dry_run:
        events, obstacles = registry.catalog.plan(text, reason=reason, file=shown)
    else:
        events = registry.catalog.apply(text, reason=reason, file=shown)
    if as_json:
        print_json([event.to_dict() for event in events])
        return
    for event in events:
        typer.echo(printable(describe_event(event)))
    count = f"{len(events)} change{'' if len(events) == 1 else 's'}"
    typer.echo(f"{count} would be made." if dry_run else f"{count}.", err=True)
    if obstacles:
        typer.echo("The file would be refused:\n  " + "\n  ".join(obstacles), err=True)


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of such a file. Editors use it to complete and check the file."""
    write_utf8(files("medvllm.catalog").joinpath("entries.schema.json").read_text(encoding="utf-8"))


@app.command("migrate")
def migrate(
    to: Annotated[str | None, typer.Option(help="The schema, for an earlier version of medvllm.")] = None,
) -> None:
    """Migrate the database to the schema of this program. A SQLite file migrates itself when it is opened."""
    from medvllm.catalog.sql.schema import HEAD

    after = to or HEAD
    before, backup = registry.catalog.migrate(after)
    typer.echo(f"Schema {before or 'none'} -> {after}." if before != after else f"The schema is already {after}.")
    if backup is not None:
        typer.echo(f"Backup: {backup}", err=True)

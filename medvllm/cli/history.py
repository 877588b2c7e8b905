"""`medvllm history`: who changed what in the stored catalogue, when and why."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from medvllm.catalog.event_words import describe_event
from medvllm.cli.completion import stored_names
from medvllm.cli.output import print_json, print_table
from medvllm.cli.parameters import Json
from medvllm.cli.plain_help import Group
from medvllm.model_registry import registry


class _ListByDefault(Group):
    """A group that runs its command `list` if the first word is not one of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListByDefault,
    help="List the changes of the stored catalogue, or verify that nobody has edited them. `medvllm history NAME` is "
    "short for `medvllm history list NAME`.",
)


def _words(incomplete: str) -> Iterator[str]:
    """Complete the first word, which may be a name or the other command."""
    yield from ["verify"] if incomplete and "verify".startswith(incomplete) else []
    yield from stored_names(incomplete)


@app.command("list")
def list_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Only events of this name, which may have been removed. For a model named list or verify: history "
            "list NAME.",
            autocompletion=_words,
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only events from this date or time on: 2026-03-01, 2026-03-01T12:30.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the changes of the stored catalogue, the first one first."""
    events = registry.catalog.history(name, since=since)
    if name is not None and not events:
        registry.catalog.check_known(name)
    if as_json:
        print_json([event.to_dict() for event in events])
        return
    if not events:
        typer.echo("There are no events.", err=True)
    columns = ("NO", "TIME", "WHO", "WHAT", "REASON")
    rows = ((e.seq, e.at[:19] + "Z", f"{e.who}@{e.machine}", describe_event(e), e.reason) for e in events)
    print_table(columns, rows)


@app.command("verify")
def verify(as_json: Json = False) -> None:
    """Read the whole history, and find events that were edited, removed or reordered; exit code 1 if there are any.

    Also finds entries and aliases that no event explains. Keep the printed hash elsewhere: someone who may write to the
    database can rewrite all of it.
    """
    length, digest, flaws = registry.catalog.check_history()
    if as_json:
        print_json({"events": length, "hash": digest or None, "flaws": flaws})
    else:
        print_table(("STATE", "WHAT"), [("wrong", flaw) for flaw in flaws] or [("ok", f"{length} events")])
        if digest:
            typer.echo(f"The last hash is {digest}", err=True)
    if flaws:
        raise typer.Exit(1)

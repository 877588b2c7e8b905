"""`medvllm history`: who changed what in the stored catalogue, when and why."""

from typing import Annotated, Any

import typer

from medvllm.catalog import Event
from medvllm.cli.completion import stored_names
from medvllm.cli.output import one_line, print_json, print_table
from medvllm.cli.parameters import Json
from medvllm.model_registry import registry


def history(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="An entry's name, also one that is gone; else all.", autocompletion=stored_names
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help="A day or a time: 2026-03-01, 2026-03-01T12:30.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Find events that were edited, removed or reordered.")] = False,
    as_json: Json = False,
) -> None:
    """List the changes of the stored catalogue, the first one first, or check that they are as they were written."""
    if check and (name or since):
        raise typer.BadParameter("--check reads all of the history: give no name and no time")
    if check:
        _check(as_json)
        return
    events = registry.catalog.history(name, since=since)
    if as_json:
        print_json([event.to_dict() for event in events])
        return
    if not events:
        typer.echo("There is no event.", err=True)
    columns = ("NO", "TIME", "WHO", "WHAT", "REASON")
    rows = ((e.seq, e.at[:19] + "Z", f"{e.who}@{e.machine}", described(e), e.reason) for e in events)
    print_table(columns, rows)


def _check(as_json: bool) -> None:
    length, digest, flaws = registry.catalog.check_history()
    if as_json:
        print_json({"events": length, "hash": digest or None, "flaws": flaws})
    else:
        print_table(("STATE", "WHAT"), [("wrong", flaw) for flaw in flaws] or [("ok", f"{length} events")])
        if digest:
            typer.echo(f"The last hash is {digest}", err=True)
    if flaws:
        raise typer.Exit(1)


def described(event: Event) -> str:
    """Return in a few words what an event did."""
    version = event.name if event.version is None else f"{event.name}@{event.version}"
    alias, before = f"{event.name}@{event.alias}", event.detail.get("from")
    words: dict[str, str] = {
        "created": "catalogue created",
        "migrated": f"catalogue migrated from schema {before} to {event.detail.get('to')}",
        "registered": f"+ {version}",
        "changed": f"~ {version}: {'; '.join(_mark(*item) for item in sorted(event.detail.get('facts', {}).items()))}",
        "unregistered": f"- {version}",
        "aliased": f"{'+' if before is None else '~'} {alias} -> {event.version}{_was(before)}",
        "unaliased": f"- {alias}{_was(before)}",
        "locked": f"locked {version}: files {str(event.detail.get('digest'))[:12]}",
        "imported": f"imported {version}: bundle {str(event.detail.get('bundle'))[:12]}",
        "protected": f"~ {alias} protected",
        "unprotected": f"~ {alias} not protected any more",
        "loaded": f"loaded {event.name if event.detail.get('source') == 'direct' else version}",
    }
    return words.get(event.action, event.action)


def _mark(fact: str, value: Any) -> str:
    """Return in a few words what a mark is now."""
    if value is None:
        return f"no {fact}"
    if fact in ("baseline", "baseline_digest"):
        return fact
    text = str(one_line(value, ", "))
    return f"{fact} {text if len(text) <= 80 else text[:79] + '…'}"


def _was(before: Any) -> str:
    return "" if before is None else f" (was {before})"

"""`medvllm list`, `medvllm show` and `medvllm pull`: what is registered, and its files. None imports torch."""

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from medvllm.cli.output import megabytes, one_line, print_json, print_table, printable
from medvllm.facts import keywords
from medvllm.metadata import ModelMetadata, ModelType
from medvllm.registry import registry

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_(
    pattern: Annotated[str | None, typer.Argument(help="Glob on the name, such as 'bio*'.")] = None,
    model_type: Annotated[
        str | None, typer.Option("--type", help=f"Only models of this type: {', '.join(ModelType)}.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only models that are ready for this task.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only models with this tag; may be repeated.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FACT=VALUE", help="Only models with this fact, a glob: license=apache*; may be repeated."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = None,
    after: Annotated[str | None, typer.Option(metavar="NAME", help="Only names after this one: the next page.")] = None,
    as_json: Json = False,
) -> None:
    """List the registered models, sorted by name."""
    facts: dict[str, Any] = dict(_fact(text) for text in where or ())
    entries = registry.list_models(
        model_type, task=task, tags=tag or (), match=pattern, limit=limit, after=after, **facts
    )
    if as_json:
        print_json([metadata.to_dict() for metadata in entries.values()])
        return
    if not entries:
        typer.echo("No registered model matches.", err=True)
    rows = ((name, m.model_type.name, ", ".join(m.tasks) or None, m.description) for name, m in entries.items())
    print_table(("NAME", "TYPE", "TASKS", "DESCRIPTION"), rows)


def show(name: Annotated[str, typer.Argument(help="Name of a registered model.")], as_json: Json = False) -> None:
    """Show what is known of a model, and how: S seen in a primary source, V verified by experiment, L likely."""
    metadata = registry.get_metadata(name)
    facts = metadata.to_dict()
    versions, aliases = _versions(metadata)
    if as_json:
        print_json(facts | {"versions": list(versions), "version_aliases": aliases})
        return
    evidence, accepted = facts.pop("evidence"), facts.pop("acceptance")
    facts["acceptance_tests"] = len(accepted) or None
    groups: dict[str, list[tuple[str, object, str]]] = {}
    for fact, value in facts.items():
        if value not in (None, "", [], {}):
            group = keywords()[fact][0] if fact in keywords() else ""
            groups.setdefault(group or "entry", []).append((fact, one_line(value, "; "), evidence.get(fact, "")))
    for group, rows in groups.items():
        print_table((group.upper(), "VALUE", "EVIDENCE"), rows)
    if metadata.origin == "stored":
        print_table(("VERSION", "ALIASES", "STATE"), _states(metadata.name, versions, aliases))


def _states(
    name: str, versions: dict[int, ModelMetadata], aliases: dict[str, int | None]
) -> Iterator[tuple[object, ...]]:
    """Give for each version which aliases point to it, and whether it is meant by the name or deprecated."""
    current = registry.catalog.find(name)
    for number, entry in versions.items():
        pointing = ", ".join(alias for alias, to in aliases.items() if to == number)
        states = ["what the name means"] if current is not None and number == current.version else []
        states += [f"deprecated: {entry.standing.deprecated}"] if entry.standing.deprecated else []
        yield number, pointing or None, "; ".join(states) or None


def _versions(metadata: ModelMetadata) -> tuple[dict[int, ModelMetadata], dict[str, int | None]]:
    """Return the versions of an entry, and what its aliases point to."""
    if metadata.origin != "stored":
        return {metadata.version: metadata}, {}
    aliases = registry.catalog.aliases(metadata.name)
    return registry.catalog.versions(metadata.name), {alias.alias: alias.version for alias in aliases}


def _fact(text: str) -> tuple[str, str]:
    fact, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not written as FACT=VALUE, such as gated=false")
    if option := {"task": "--task", "tags": "--tag", "model_type": "--type"}.get(fact):
        raise typer.BadParameter(f"{fact} has an option of its own: {option} {value}")
    return fact.replace("-", "_"), value


def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models to fetch.")],
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask for the commit that a branch has today.")] = False,
) -> None:
    """Fetch the files of models, so that they load without a network; nothing is loaded."""
    for name in names:
        start = time.perf_counter()
        folder = registry.pull(name, refresh=refresh)
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = megabytes(sum(file.stat().st_size for file in files))
        seconds = time.perf_counter() - start
        typer.echo(f"Fetched {printable(name)!r}: {len(files)} files, {size}, in {seconds:.1f} s, to {folder}")

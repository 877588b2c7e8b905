"""`medvllm list`: the registered models, one line each. It imports no torch."""

from typing import Annotated, Any

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.output import print_json, print_table, printable
from medvllm.cli.parameters import Json
from medvllm.cli.streams import say
from medvllm.local_files import LocalFiles, local_files
from medvllm.metadata import ModelMetadata
from medvllm.model_registry import registry
from medvllm.model_type import ModelType
from medvllm.near_names import did_you_mean, near_names
from medvllm.quantities import shown_size

_GLOB = frozenset("*?[")


def list_(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="Text in the name or the description, such as biobert, or a glob on the name: 'bio*'.",
            autocompletion=model_names,
        ),
    ] = None,
    model_type: Annotated[
        str | None, typer.Option("--type", help=f"Only models of this type: {', '.join(ModelType)}.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Only models for this task.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only models with this tag; may be repeated.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FACT=VALUE",
            help="Only models with this fact, as a glob: license=apache*; may be repeated.",
        ),
    ] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only models that are not built in.")] = False,
    here: Annotated[bool, typer.Option("--here", help="Only models whose files are on this machine.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many.")] = None,
    after: Annotated[str | None, typer.Option(metavar="NAME", help="Only names after this one: the next page.")] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="Also show version, origin, licence, commit and description.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the registered models, one line each, sorted by name."""
    facts: dict[str, Any] = dict(_fact(text) for text in where or ())
    if mine:
        facts.setdefault("origin", "[!b]*")
    is_glob = pattern is not None and bool(_GLOB.intersection(pattern))
    entries = registry.list_models(
        model_type,
        task=task,
        tags=tag or (),
        match=pattern if is_glob else None,
        search=None if is_glob else pattern,
        limit=limit,
        after=after,
        here=here,
        **facts,
    )
    found = ((each, local_files(each)) for each in entries.values())
    if as_json:
        print_json([metadata.to_dict() for metadata in entries.values()])
        return
    if not entries and mine and not (pattern or model_type or task or tag or where or here or after):
        say("You have not registered a model yet.\nRegister one with: medvllm register NAME --path FOLDER --type TYPE")
    elif not entries:
        _say_none(pattern, is_filtered=bool(model_type or task or tag or facts or here or after))
    columns = ("NAME", "TYPE", "TASKS", "HERE", "SIZE")
    more = ("VERSION", "ORIGIN", "LICENSE", "COMMIT", "DESCRIPTION")
    rows = ((*_row(*pair), *(_more(pair[0]) if wide else ())) for pair in found)
    print_table((*columns, *(more if wide else ())), rows, in_lines=True)


def _row(entry: ModelMetadata, files: LocalFiles | None) -> tuple[object, ...]:
    size = None if files is None else shown_size(files.size_bytes)
    return entry.name, entry.model_type.name, ", ".join(entry.tasks) or None, "yes" if files else None, size


def _more(entry: ModelMetadata) -> tuple[object, ...]:
    commit = (entry.source.revision or "")[:7] or None
    return entry.version, entry.origin, entry.license.license, commit, entry.description


def _say_none(pattern: str | None, *, is_filtered: bool) -> None:
    """Say that no model matches, and what to try."""
    if pattern is None:
        say("No registered model matches these filters.\nList all with: medvllm list")
        return
    near = near_names(pattern.strip("*?"), registry.list_models(), 3)
    also = " and these filters" if is_filtered else ""
    say(f"No registered model matches {printable(pattern)!r}{also}.{did_you_mean(near)}")
    say("A text searches names and descriptions, for example: medvllm list biobert\nList all with: medvllm list")


def _fact(text: str) -> tuple[str, str]:
    fact, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not FACT=VALUE, for example gated=false", param_hint="--where")
    if option := {"task": "--task", "tags": "--tag", "model_type": "--type"}.get(fact):
        raise typer.BadParameter(f"use the option {option} {value} to filter by {fact}", param_hint="--where")
    return fact.replace("-", "_"), value

"""`medvllm register`: save a model in the stored catalogue."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from medvllm.catalog import builtin_entries
from medvllm.cli.output import printable
from medvllm.cli.parameters import Reason, split_pair, split_tags
from medvllm.errors import RequestError
from medvllm.fact_values import check_fact
from medvllm.model_registry import registry
from medvllm.model_type import ModelType
from medvllm.names import parse_name
from medvllm.words import TASKS


def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the entry.")],
    model_type: Annotated[str, typer.Option("--type", help=f"What it was made for: {', '.join(ModelType)}.")],
    path: Annotated[
        str | None,
        typer.Option(help="Repository (org/repo) or folder (./folder); when left out, NAME is the repository."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the repository.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Entry that an adapter completes, if the model is an adapter.")
    ] = None,
    task: Annotated[str | None, typer.Option(help=f"{', '.join(TASKS)}.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Maximum number of tokens, special tokens included.")] = None,
    lower_case: Annotated[
        bool | None, typer.Option("--lower-case/--cased", help="Whether the tokenizer lowercases text.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="How tokens become a vector: mean, cls, max …; separate several with commas.")
    ] = None,
    model_class: Annotated[str | None, typer.Option(help="Model class, as module:Class.")] = None,
    description: Annotated[str | None, typer.Option(help="Description, in one line.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag, or KEY=VALUE; may be repeated.")] = None,
    fact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FACT=VALUE", help="Set any other fact of registry.register: license=mit; may be repeated."
        ),
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Keep a copy of the folder in MEDVLLM_HOME.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a built-in model of that name.")] = False,
    reason: Reason = None,
) -> None:
    """Save a model in the catalogue: as version 1, or as the next version if it differs from the latest."""
    tags, values = split_tags(tag or [])
    stated: dict[str, Any] = {
        "model_path": path,
        "revision": revision,
        "base": base,
        "task": task,
        "max_length": max_length,
        "do_lower_case": lower_case,
        "pooling": None if pooling is None else _value(name, "pooling", pooling),
        "model_class": model_class,
        "description": description,
        "tags": tags or None,
        "values": values or None,
    }
    facts = {keyword: value for keyword, value in stated.items() if value is not None}
    for keyword, text in (split_pair(text, "--fact") for text in fact or ()):
        facts[keyword.replace("-", "_")] = _value(name, keyword.replace("-", "_"), text)
    if path is not None and parse_name(path).kind == "folder" and not Path(parse_name(path).name).is_dir():
        wrong = (
            f"{path!r} is a file; pass its folder"
            if Path(parse_name(path).name).exists()
            else f"there is no folder {path!r}"
        )
        raise typer.BadParameter(wrong, param_hint="--path")
    before = registry.catalog.versions(name)
    # Only a built-in name needs --replace: a stored name gets its next version.
    replace = replace or bool(before) or name not in builtin_entries()
    entry = registry.register(name, model_type, persist=True, replace=replace, copy=copy, reason=reason, **facts)
    shown = repr(printable(name))
    if entry.version in before and entry == before[entry.version]:
        typer.echo(f"Nothing changed: the latest version of {shown} is {entry.version}.")
        return
    typer.echo(f"{'Updated' if entry.version in before else 'Registered'} {shown}, version {entry.version}.")
    meant = registry.get_metadata(name)
    if meant.version != entry.version:
        typer.echo(f"The name {shown} still means version {meant.version}, because of its alias 'default'.", err=True)


def _value(name: str, keyword: str, text: str) -> Any:
    """Return the value of a fact.

    A fact of text takes the text as it is. Others take a TOML value (a number, true, false or a list), or texts with
    commas between them.
    """
    candidates: list[Any] = [text]
    try:
        candidates.append(tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        candidates.append(text.split(","))
    errors: list[RequestError] = []
    for candidate in candidates:
        try:
            return check_fact(name, keyword, candidate)[1]
        except RequestError as error:
            errors.append(error)
    raise errors[0]

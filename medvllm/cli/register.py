"""`medvllm register`, `unregister`, `tag` and `deprecate`: entries that outlive the process."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medvllm.catalog import builtin_entries
from medvllm.cli.completion import stored_names
from medvllm.cli.output import printable
from medvllm.errors import RequestError
from medvllm.fact_values import check_fact
from medvllm.metadata import ModelType
from medvllm.model_registry import registry
from medvllm.names import parse
from medvllm.words import TASKS

Reason = Annotated[str | None, typer.Option(help="Why; the history keeps it.")]
Tag = Annotated[list[str] | None, typer.Option("--tag", help="A tag, or KEY=VALUE; may be repeated.")]


def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the entry.")],
    model_type: Annotated[str, typer.Option("--type", help=f"What it was made for: {', '.join(ModelType)}.")],
    path: Annotated[
        str | None, typer.Option(help="Repository (org/repo) or folder (./folder); else the name is the repository.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the repository.")] = None,
    task: Annotated[str | None, typer.Option(help=f"{', '.join(TASKS)}.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens, special tokens included.")] = None,
    lower_case: Annotated[bool | None, typer.Option("--lower-case/--cased", help="How its text is read.")] = None,
    pooling: Annotated[
        str | None, typer.Option(help="How tokens become a vector: mean, cls, max …, or several with commas between.")
    ] = None,
    model_class: Annotated[str | None, typer.Option(help="Its class, as module:Class.")] = None,
    description: Annotated[str | None, typer.Option(help="What it is, in a line.")] = None,
    tag: Tag = None,
    fact: Annotated[
        list[str] | None,
        typer.Option(metavar="FACT=VALUE", help="Any other fact of registry.register; may be repeated."),
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Keep a copy of the folder in MEDVLLM_HOME.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a built-in model.")] = False,
    reason: Reason = None,
) -> None:
    """Save a model in the catalogue: as version 1, or as the next version if it differs from the latest."""
    tags, values = _tags(tag or ())
    stated: dict[str, Any] = {
        "model_path": path,
        "revision": revision,
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
    for keyword, text in (_pair(text, "--fact") for text in fact or ()):
        facts[keyword.replace("-", "_")] = _value(name, keyword.replace("-", "_"), text)
    if path is not None and parse(path).kind == "folder" and not Path(parse(path).name).is_dir():
        raise typer.BadParameter(f"there is no folder {path!r}", param_hint="--path")
    before = registry.catalog.versions(name)
    # Only a built-in model is not to be taken by chance; versions follow each other, whoever was first.
    replace = replace or bool(before) or name not in builtin_entries()
    entry = registry.register(name, model_type, persist=True, replace=replace, copy=copy, reason=reason, **facts)
    shown = repr(printable(name))
    if entry.version in before and entry == before[entry.version]:
        typer.echo(f"Nothing has changed: the newest version of {shown} is {entry.version}.")
        return
    typer.echo(f"{'Marked' if entry.version in before else 'Registered'} {shown}, version {entry.version}.")
    meant = registry.get_metadata(name)
    if meant.version != entry.version:
        typer.echo(f"The bare name still means version {meant.version}, by the alias 'default'.", err=True)


def unregister(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]", autocompletion=stored_names, help="A stored entry, or one version of it."
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Also when an alias points to it, or a process has it in use.")
    ] = False,
    reason: Reason = None,
) -> None:
    """Remove a stored model with all its versions, or one version. A version number is never used again."""
    removed = registry.catalog.remove(name, force=force, reason=reason)
    which = f"version {removed[0]}" if len(removed) == 1 else f"versions {', '.join(map(str, removed))}"
    typer.echo(f"Unregistered {printable(parse(name).name)!r}, {which}.")


def tag(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", autocompletion=stored_names, help="A stored entry.")],
    tags: Annotated[list[str] | None, typer.Argument(metavar="TAG...", help="A tag to add, or KEY=VALUE.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Tag or key to remove; may be repeated.")] = None,
    reason: Reason = None,
) -> None:
    """Add tags and KEY=VALUE pairs to a version, or remove them; then print all that it has."""
    names, values = _tags(tags or ())
    entry = registry.catalog.tag(
        name, add={**dict.fromkeys(names), **values}, remove=tuple(remove or ()), reason=reason
    )
    shown = [*entry.tags, *(f"{key}={value}" for key, value in entry.values.items())]
    typer.echo(f"{printable(entry.reference)}: {printable(', '.join(shown)) if shown else 'no tags'}")


def deprecate(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]", autocompletion=stored_names, help="A stored entry; all versions without one."
        ),
    ],
    successor: Annotated[str | None, typer.Option(help="The model to use in its place.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; each load says it.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Remove the deprecation.")] = False,
) -> None:
    """Mark a stored model as deprecated: each load warns, and names the successor."""
    if successor is not None:
        registry.get_metadata(successor)  # an error with near names, if there is none
    if off and successor:
        raise typer.BadParameter("give --successor or --off, not both")
    if not (off or successor or reason):
        raise typer.BadParameter("give --successor, --reason or --off")
    marks = {"deprecated": None if off else reason or "no reason is given", "successor": None if off else successor}
    for entry in registry.catalog.mark(name, reason=reason, **marks):
        typer.echo(f"{'Not deprecated any more' if off else 'Deprecated'}: {printable(entry.reference)}")


def _tags(texts: list[str] | tuple[()]) -> tuple[list[str], dict[str, str]]:
    """Return what is a plain tag, and what gives a key its value."""
    values = dict(_pair(text, "--tag") for text in texts if "=" in text)
    return [text for text in texts if "=" not in text], values


def _pair(text: str, option: Literal["--fact", "--tag"]) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise typer.BadParameter(f"{text!r} is not written as KEY=VALUE", param_hint=option)
    return key, value


def _value(name: str, keyword: str, text: str) -> Any:
    """Return a fact's value: the text itself where it takes one, a number, true, false or list as TOML, or texts
    between commas."""
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

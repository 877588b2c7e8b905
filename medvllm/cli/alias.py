"""`medvllm alias`: names that point to versions, such as production."""

from typing import Annotated

import typer

from medvllm.catalog.events import Alias
from medvllm.cli.completion import stored_names
from medvllm.cli.output import print_json, print_table, printable
from medvllm.cli.parameters import Json, Reason
from medvllm.cli.streams import say
from medvllm.model_registry import registry

app = typer.Typer(help="Point names such as production to versions, and protect them.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A stored entry.", autocompletion=stored_names)]
AliasName = Annotated[
    str,
    typer.Argument(
        metavar="ALIAS",
        help="The alias, for example production. The alias default sets the version that the bare name means.",
    ),
]


@app.command("set")
def set_(
    name: Name,
    alias: AliasName,
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="The number of a version, or another alias that points to it.")
    ],
    reason: Reason = None,
) -> None:
    """Point an alias to a version. A protected alias requires a locked version with a baseline, and a reason."""
    number = registry.catalog.set_alias(name, alias, version, reason=reason).version
    typer.echo(f"{printable(name)}@{alias} is version {number}.")


@app.command("remove")
def remove(name: Name, alias: AliasName, reason: Reason = None) -> None:
    """Remove an alias. A protected alias requires a reason and stays protected."""
    registry.catalog.remove_alias(name, alias, reason=reason)
    typer.echo(f"Removed {printable(name)}@{alias}.")


@app.command("protect")
def protect(name: Name, alias: AliasName, reason: Reason = None) -> None:
    """Let an alias point only to a version that is locked and has a baseline, and move only with a reason."""
    registry.catalog.protect(name, alias, reason=reason)
    typer.echo(f"{printable(name)}@{alias} is protected.")
    if all(each.version is None for each in registry.catalog.aliases(name) if each.alias == alias):
        say(f"It points to no version yet: medvllm alias set {printable(name)} {alias} VERSION --reason 'why'")


@app.command("unprotect")
def unprotect(name: Name, alias: AliasName, reason: Reason = None) -> None:
    """End the protection of an alias. This requires a reason."""
    registry.catalog.protect(name, alias, False, reason=reason)
    typer.echo(f"{printable(name)}@{alias} is no longer protected.")


@app.command("list")
def list_(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Only aliases of this stored entry.", autocompletion=stored_names),
    ] = None,
    as_json: Json = False,
) -> None:
    """List aliases and the versions that they point to, and why the version of a protected alias would not load."""
    aliases = registry.catalog.aliases(name)
    if name is not None and not aliases:
        registry.catalog.check_known(name)
    unmet = {alias: registry.catalog.unmet_requirements(alias) for alias in aliases}
    if as_json:
        print_json([vars(alias) | {"unmet": unmet[alias]} for alias in aliases])
        return
    if not aliases:
        typer.echo("There are no aliases.", err=True)
    rows = ((each.name, each.alias, each.version, _state(each, unmet[each])) for each in aliases)
    print_table(("NAME", "ALIAS", "VERSION", "PROTECTION"), rows)


def _state(alias: Alias, unmet: list[str]) -> str | None:
    if not alias.protected:
        return None
    return f"protected, not met: {'; '.join(unmet)}" if unmet else "protected"

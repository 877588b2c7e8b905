"""`medvllm alias`: names that point to versions, such as production."""

from typing import Annotated

import typer

from medvllm.catalog import Alias
from medvllm.cli.completion import stored_names
from medvllm.cli.models import Json
from medvllm.cli.output import print_json, print_table, printable
from medvllm.cli.register import Reason
from medvllm.cli.streams import say
from medvllm.model_registry import registry

app = typer.Typer(help="Let a name such as production point to a version.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A stored entry.", autocompletion=stored_names)]
AliasName = Annotated[
    str,
    typer.Argument(
        metavar="ALIAS", help="Alias, such as production; the alias default sets the version that the bare name loads."
    ),
]


@app.command("set")
def set_(
    name: Name,
    alias: AliasName,
    version: Annotated[str, typer.Argument(help="A version's number, or another alias of the same name.")],
    reason: Reason = None,
) -> None:
    """Point an alias to a version, in one step. A protected one asks for a lock, acceptance tests and a reason."""
    number = registry.catalog.set_alias(name, alias, version, reason=reason).version
    typer.echo(f"{printable(name)}@{alias} is version {number}.")


@app.command("rm")
def rm(name: Name, alias: AliasName, reason: Reason = None) -> None:
    """Remove an alias. A protected one asks for a reason, and stays protected."""
    registry.catalog.remove_alias(name, alias, reason=reason)
    typer.echo(f"Removed {printable(name)}@{alias}.")


@app.command("protect")
def protect(
    name: Name,
    alias: AliasName,
    off: Annotated[bool, typer.Option("--off", help="Protect it no longer; this asks for a reason.")] = False,
    reason: Reason = None,
) -> None:
    """Let an alias point only to a version that is locked and accepted, and move only with a reason."""
    registry.catalog.protect(name, alias, not off, reason=reason)
    typer.echo(f"{printable(name)}@{alias} is {'not protected any more' if off else 'protected'}.")
    if not off and all(each.version is None for each in registry.catalog.aliases(name) if each.alias == alias):
        say(f"It points to no version yet: medvllm alias set {printable(name)} {alias} VERSION --reason 'why'")


@app.command("list")
def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A stored entry; else all.", autocompletion=stored_names)
    ] = None,
    as_json: Json = False,
) -> None:
    """List aliases and the versions that they point to; a protected one whose version does not load says why."""
    aliases = registry.catalog.aliases(name)
    unmet = {alias: registry.catalog.unmet_requirements(alias) for alias in aliases}
    if as_json:
        print_json([vars(alias) | {"unmet": unmet[alias]} for alias in aliases])
        return
    if not aliases:
        typer.echo("There is no alias.", err=True)
    rows = ((each.name, each.alias, each.version, _state(each, unmet[each])) for each in aliases)
    print_table(("NAME", "ALIAS", "VERSION", "PROTECTION"), rows)


def _state(alias: Alias, unmet: list[str]) -> str | None:
    if not alias.protected:
        return None
    return f"protected, not met: {'; '.join(unmet)}" if unmet else "protected"

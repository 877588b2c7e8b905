"""The program `medvllm` with its commands."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated

import typer

from medvllm import __version__
from medvllm.cli.plain_help import Command, Group

# Each command, in the order of the help text, and where it is: a module of this package, and the function or the group.
_COMMANDS = {
    "list": "listing:list_",
    "show": "show:show",
    "diff": "diff:diff",
    "pull": "pull:pull",
    "cache": "cache:app",
    "run": "run:run",
    "batch": "batch:app",
    "plan": "plan:plan",
    "ps": "ps:ps",
    "load": "load:load",
    "unload": "load:unload",
    "register": "register:register",
    "unregister": "unregister:unregister",
    "tag": "tag:tag",
    "deprecate": "deprecate:deprecate",
    "alias": "alias:app",
    "history": "history:app",
    "catalog": "catalog:app",
    "serve": "serve:serve",
    "key": "key:app",
    "lock": "lock:lock",
    "verify": "verify:verify",
    "baseline": "baseline:app",
    "export": "bundle:export",
    "import": "bundle:import_",
    "doctor": "doctor:doctor",
}


def make_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the program for the arguments of a command line.

    If they begin with a command, only that command is imported, so that it starts sooner. Otherwise the program has
    every command: for the help text, for completion, and to offer the right name for a misspelt one.
    """
    return _make(arguments[:1] if arguments and arguments[0] in _COMMANDS else _COMMANDS)


def _make(names: Iterable[str]) -> typer.Typer:
    app = typer.Typer(
        cls=Group,
        help="A model registry for biomedical and clinical language models.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_program)
    for name in names:
        module, _, attribute = _COMMANDS[name].partition(":")
        command = getattr(import_module(f"medvllm.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            for inner in command.registered_commands:
                inner.cls = Command
            own = command.info.cls
            app.add_typer(command, name=name, cls=own if isinstance(own, type) and issubclass(own, Group) else Group)
        else:
            app.command(name, cls=Command)(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medvllm {__version__}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass

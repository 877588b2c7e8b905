"""The program `medvllm` and its commands."""

from typing import Annotated

import typer

from medvllm import __version__
from medvllm.cli import (
    alias,
    baseline,
    bundle,
    cache,
    catalog,
    deprecate,
    diff,
    doctor,
    history,
    listing,
    lock,
    plan,
    ps,
    pull,
    register,
    run,
    show,
    tag,
    unregister,
    verify,
)

app = typer.Typer(
    help="Say a model's name and get that model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medvllm {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.command("list")(listing.list_)
app.command("show")(show.show)
app.command("diff")(diff.diff)
app.command("pull")(pull.pull)
app.add_typer(cache.app, name="cache")
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("ps")(ps.ps)
app.command("register")(register.register)
app.command("unregister")(unregister.unregister)
app.command("tag")(tag.tag)
app.command("deprecate")(deprecate.deprecate)
app.add_typer(alias.app, name="alias")
app.add_typer(history.app, name="history")
app.add_typer(catalog.app, name="catalog")
app.command("lock")(lock.lock)
app.command("verify")(verify.verify)
app.add_typer(baseline.app, name="baseline")
app.command("export")(bundle.export)
app.command("import")(bundle.import_)
app.command("doctor")(doctor.doctor)

"""`medvllm baseline`: record the behaviour of a model, and check that it is still the same."""

from typing import Annotated

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.output import print_findings, printable
from medvllm.cli.parameters import Json
from medvllm.engine.model_runner import ModelRunner, registry
from medvllm.errors import CatalogError, LoadError, SourceError

app = typer.Typer(help="Record how a model behaves, and check it after an upgrade.", no_args_is_help=True)


@app.command("record")
def record(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", autocompletion=model_names, help="Registered models, such as ner@2."),
    ],
    reason: Annotated[str | None, typer.Option(help="Why; the history of a stored entry keeps it.")] = None,
) -> None:
    """Record the output of models for a few synthetic texts in their entries.

    A built-in model gets a stored copy of its entry.
    """
    for name in names:
        entry = ModelRunner(name).record_baseline(reason=reason)
        typer.echo(
            f"Recorded a baseline of {printable(entry.name)!r}, version {entry.version}: {len(entry.baseline)} cases.\n"
            f"Check it with: medvllm baseline check {printable(entry.reference)}"
        )


@app.command("check")
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", autocompletion=model_names, help="Models; all that have a baseline when left out."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Load models and compare their output with their baselines. Exit code 1 if one deviates or does not load."""
    asked = names or [entry.name for entry in registry.list_models().values() if entry.baseline]
    if not asked:
        raise CatalogError(
            "Nothing was checked: no registered model has a baseline.\nRecord one with: medvllm baseline record NAME"
        )
    deviations = {name: _check(name) for name in asked}
    print_findings(deviations, "baseline", as_json=as_json)


def _check(name: str) -> dict[str, str]:
    """Return how a model deviates. A model that does not load is a finding, so that the others are checked too."""
    try:
        return ModelRunner(name).check_baseline()
    except (SourceError, LoadError) as error:
        return {"load": " ".join(str(error).split("\n"))}

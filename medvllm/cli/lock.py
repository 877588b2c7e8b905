"""`medvllm lock`, `accept` and `verify`: approve a model's bytes and behaviour, and prove that they are still those."""

from typing import Annotated

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.models import Json
from medvllm.cli.output import print_json, print_table, printable
from medvllm.engine.model_runner import ModelRunner, registry
from medvllm.errors import SourceError
from medvllm.quantities import shown_size
from medvllm.sources import Lock


def lock(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", autocompletion=model_names, help="Models to approve.")
    ],
    reason: Annotated[str | None, typer.Option(help="Why; the lock file and the history keep it.")] = None,
) -> None:
    """Approve models as they are: write commit, size and SHA-256 of every file to the lock file (MEDVLLM_LOCK_FILE)."""
    before = Lock.current()
    for name, model in registry.lock(*names, reason=reason).items():
        known = before.models.get(before.key_of(name))
        is_news = known is None or known != model or known.approval != model.approval
        what = "Locked" if is_news else "Already locked:"
        size = shown_size(sum(digest.size for digest in model.files.values()))
        at = f" at {model.commit[:7]}" if model.commit else ""
        by = f", approved by {printable(model.approval.by)} on {model.approval.at[:10]}" if model.approval else ""
        typer.echo(f"{what} {printable(name)!r}{at}: {len(model.files)} files, {size}, in {before.file}{by}")


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", autocompletion=model_names, help="Locked models; else all.")
    ] = None,
    behaviour: Annotated[
        bool, typer.Option("--behaviour", help="Also load them, and run the acceptance tests of their entries again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hash the files of locked models again and say which differ; without network. Exit code 1 when one does."""
    flaws = _flaws(names, behaviour)
    if not flaws:
        raise _nothing_locked()
    if as_json:
        print_json(flaws)
    else:
        rows = [
            (name, what, flaw)
            for name, found in flaws.items()
            for what, flaw in (found or {"everything": "ok"}).items()
        ]
        print_table(("MODEL", "WHAT", "STATE"), rows)
    if any(flaws.values()):
        raise typer.Exit(1)


def _nothing_locked() -> SourceError:
    """Return the error of a check that looked at nothing, which must not pass for a good one."""
    file = Lock.current().file
    return SourceError(
        f"Nothing was verified: lock file '{file}' {'names no model' if file.exists() else 'does not exist'}.\n"
        "Approve a model first: medvllm lock NAME",
        path=str(file),
    )


def accept(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", autocompletion=model_names, help="Registered models.")
    ],
    reason: Annotated[str | None, typer.Option(help="Why; the history of a stored entry keeps it.")] = None,
) -> None:
    """Record what models make of a few synthetic inputs into their entries: verify --behaviour compares with it."""
    for name in names:
        entry = ModelRunner(name).record_baseline(reason=reason)
        typer.echo(
            f"Accepted {printable(entry.name)!r}: {len(entry.baseline)} tests, in version {entry.version}.\n"
            f"Run them again with: medvllm baseline check {entry.reference}"
        )


def _flaws(names: list[str] | None, behaviour: bool) -> dict[str, dict[str, str]]:
    """Return what is wrong with the files of each model, and how its behaviour differs; damaged ones are not loaded."""
    if names is None:
        flaws = registry.verify()
        accepted = [metadata for metadata in registry.list_models().values() if metadata.baseline]
        asked = {m.reference if m.reference in flaws else m.name: m.reference for m in accepted}
    else:
        found = {name: registry.verify(name) for name in names}
        flaws = {locked: each[locked] for each in found.values() for locked in each}
        asked = {locked: name for name, each in found.items() for locked in each}
    for locked, name in asked.items() if behaviour else ():
        if not flaws.setdefault(locked, {}):
            flaws[locked] |= ModelRunner(name).check_baseline()
    return flaws

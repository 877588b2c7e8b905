"""`medvllm export` and `medvllm import`: move models in one file, for sites without a network."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medvllm.catalog.event_words import describe_event
from medvllm.cli.completion import model_names
from medvllm.cli.output import print_json, printable
from medvllm.cli.parameters import Json, Reason
from medvllm.model_registry import registry
from medvllm.quantities import shown_size

if TYPE_CHECKING:
    from medvllm.model_registry.bundle_import import Imported
    from medvllm.sources.bundle import ExportRecord


def export(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", autocompletion=model_names, help="Models, such as ner@2 or ner@production."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; - for standard output.")],
    unlocked: Annotated[bool, typer.Option("--unlocked", help="Also export models that are not locked.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the file if it exists.")] = False,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Private key (PEM, elliptic curve) to sign the bundle with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write locked models with their files, versions, aliases and lock to one bundle, and print its SHA-256."""
    is_stdout = str(output) == "-"
    if is_stdout and sys.stdout is not None and sys.stdout.isatty():
        raise typer.BadParameter("a bundle is not text; use -o FILE or a pipe", param_hint="--output")
    exported = registry.export(output, *names, unlocked=unlocked, replace=replace, sign=sign)
    if as_json and not is_stdout:
        print_json(exported.to_dict())
        return
    exported_names = ", ".join(printable(name) for name in (*exported.models, *exported.aliases))
    lines = (
        f"Exported {exported_names} to {output}: {shown_size(exported.size_bytes)}",
        f"SHA-256   {exported.sha256}",
        f"contents  {exported.contents}",
    )
    for line in (*lines, *([f"signature {exported.signature}"] if exported.signature else [])):
        typer.echo(line, err=is_stdout)


def import_(
    file: Annotated[Path, typer.Argument(metavar="BUNDLE", help="File that medvllm export wrote.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace names, aliases and branches that exist here and differ.")
    ] = False,
    lock: Annotated[bool, typer.Option("--lock", help="Also approve the models: write them to the lock file.")] = False,
    reason: Reason = None,
    against: Annotated[
        Path | None, typer.Option(metavar="LOCK", help="Lock file from another route; every model must match it.")
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(metavar="DIGEST", help="SHA-256 of the bundle or of its contents, as export printed it."),
    ] = None,
    verify_key: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Public key (PEM) that must match the signature of the bundle."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every byte of a bundle, then add its models to this machine. Approves nothing without --lock."""
    imported = registry.import_bundle(
        file,
        replace=replace,
        dry_run=dry_run,
        lock=lock,
        reason=reason,
        against=against,
        sha256=sha256,
        verify_key=verify_key,
    )
    if as_json:
        print_json(imported.to_dict())
        return
    typer.echo(f"Bundle {file}, SHA-256 {imported.sha256}\n{_describe_export(imported.export_record)}")
    for line in _lines(imported, dry_run):
        typer.echo(line)


def _describe_export(record: "ExportRecord") -> str:
    history = (
        f"; its history had {record.events} events, the last with hash {record.last_hash[:12]}" if record.events else ""
    )
    by = f"{printable(record.by)}@{printable(record.machine)}"
    return f"According to the bundle, {by} exported it at {printable(record.at)}{history}."


def _lines(imported: "Imported", dry_run: bool) -> list[str]:
    words = {"new": "would be new", "repaired": "would be repaired"} if dry_run else {}
    lines = [
        f"  {printable(name)}  {words.get(state, 'already here' if state == 'here' else state)}"
        for name, state in imported.models.items()
    ]
    lines += [f"  {printable(describe_event(event))}" for event in imported.changes]
    lines += [printable(note[:1].upper() + note[1:] + ".") for note in imported.notes]
    if dry_run:
        return [*lines, "Nothing changed: this was a dry run."]
    lines += [f"Locked {printable(name)}" for name in imported.locked]
    if not imported.is_new:
        return [*lines, "Nothing changed: everything was here already."]
    waiting = [name for name in imported.models if name not in imported.locked and imported.models[name] == "new"]
    if waiting:
        lines.append(
            f"These models are not approved yet. After a review, run: medvllm lock {' '.join(map(printable, waiting))}"
        )
    return lines

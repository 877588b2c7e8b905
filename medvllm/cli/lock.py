"""`medvllm lock`: approve the bytes of models."""

from typing import Annotated

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.output import printable
from medvllm.model_registry import registry
from medvllm.quantities import shown_size
from medvllm.sources import Lock


def lock(
    names: Annotated[list[str], typer.Argument(metavar="NAME", autocompletion=model_names, help="Models to approve.")],
    reason: Annotated[str | None, typer.Option(help="Why; the lock file and the history keep it.")] = None,
) -> None:
    """Approve models as they are: write the commit, and the size and SHA-256 of every file, to the lock file.

    MEDVLLM_LOCK_FILE says where the lock file is. From then on, medvllm refuses other files.
    """
    before = Lock.current()
    for name, model in registry.lock(*names, reason=reason).items():
        known = before.models.get(before.key_of(name))
        is_news = known is None or known != model or known.approval != model.approval
        what = "Locked" if is_news else "Already locked:"
        size = shown_size(sum(digest.size for digest in model.files.values()))
        at = f" at {model.commit[:7]}" if model.commit else ""
        by = f", approved by {printable(model.approval.by)} on {model.approval.at[:10]}" if model.approval else ""
        typer.echo(f"{what} {printable(name)!r}{at}: {len(model.files)} files, {size}, in {before.file}{by}")

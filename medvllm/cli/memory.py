"""`medvllm plan` and `medvllm ps`: what a model would take, and which models are in memory."""

import time
from typing import Annotated, Any

import typer

from medvllm import presence
from medvllm.cli.models import Json
from medvllm.cli.output import megabytes, print_json, print_table
from medvllm.registry import registry


def plan(
    name: Annotated[str, typer.Argument(help="Name of a model, a repository (org/repo), or a folder (./folder).")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N, mps or auto.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a load would take and whether it fits the budget of this machine; nothing is loaded."""
    options = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
    found = registry.plan(name, **options)
    if as_json:
        print_json(found.to_dict())
        return
    rows = [
        ("fits", found.fit),
        ("size", f"{megabytes(found.size_bytes)} ({found.known_by})"),
        ("device", found.device),
        ("budget", "no limit" if found.budget_bytes is None else megabytes(found.budget_bytes)),
        ("load", "not known yet" if found.load_s is None else f"{found.load_s:.2f} s"),
    ]
    print_table(("WHAT", found.name), rows)


def ps(as_json: Json = False) -> None:
    """List the models that processes on this machine have in memory."""
    notes = presence.processes()
    models = [{"pid": process, **model} for process, note in notes.items() for model in note["models"]]
    if as_json:
        print_json(models)
        return
    if not models:
        typer.echo("No process has a model in memory.", err=True)
    columns = ("PID", "MODEL", "DEVICE", "DTYPE", "SIZE", "SHARED", "LEASES", "IDLE", "STAYS")
    print_table(columns, [_row(model) for model in models])


def _row(model: dict[str, Any]) -> tuple[object, ...]:
    stays = "held by its caller" if model["evicted"] else _stays(model["keep_alive"])
    idle = f"{max(time.time() - model['last_used'], 0):,.0f} s"
    where = model["device"], model["dtype"], megabytes(model["size_bytes"]), megabytes(model["mapped_bytes"])
    name = f"{model['name']}@{model['version']}" if model["source"] == "stored" else model["name"]
    return model["pid"], name, *where, model["leases"], idle, stays


def _stays(keep_alive: float | None) -> str:
    if keep_alive is None:
        return "while there is room"
    return "pinned" if keep_alive < 0 else f"{keep_alive:,.0f} s"

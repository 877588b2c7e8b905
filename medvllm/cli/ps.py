"""`medvllm ps`: the models that processes have in memory."""

import time
from typing import Annotated, Any

import typer

from medvllm.cli.output import print_json, print_table
from medvllm.cli.parameters import Json
from medvllm.model_registry import registry
from medvllm.quantities import LONGEST_S, shown_size


def ps(
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="List those of this server, asked with the key of MEDVLLM_API_KEY."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models that processes sharing this catalogue have in memory, also in containers and on other hosts.

    SHARED is the part of SIZE that is a mapped file, which processes share. STAYS is how long an idle model stays.
    """
    if server is not None:
        _print_server(server, as_json=as_json)
        return
    registry.catalog.is_there()  # raises an error if the catalogue, where processes keep their records, is missing
    records = registry.list_processes()
    models = [
        {"pid": record.process.pid, "host": record.process.host, "is_near": record.process.is_near, **model}
        for record in records
        for model in record.models
    ]
    if as_json:
        print_json(models)
        return
    if not models:
        typer.echo("No process has a model in memory.", err=True)
        return
    print_table(("PID", *_COLUMNS), [(_process(model), *_row(model)) for model in models])


_COLUMNS = ("MODEL", "DEVICE", "DTYPE", "SIZE", "SHARED", "LEASES", "IDLE", "STAYS")


def _print_server(url: str, *, as_json: bool) -> None:
    from medvllm.client.local_client import client_of_command

    with client_of_command(url) as client:
        models = client.loaded()
    if as_json:
        print_json(models)
    elif models:
        print_table(_COLUMNS, map(_row, models))
    else:
        typer.echo("The server has no model in memory.", err=True)


def _process(model: dict[str, Any]) -> object:
    return model["pid"] if model["is_near"] else f"{model['pid']} on {model['host']}"


def _row(model: dict[str, Any]) -> tuple[object, ...]:
    stays = "while held" if model["evicted"] else _stays(model["keep_alive"])
    idle = f"{max(time.time() - model['last_used'], 0):,.0f} s"
    where = model["device"], model["dtype"], shown_size(model["size_bytes"]), shown_size(model["mapped_bytes"])
    name = f"{model['name']}@{model['version']}" if model["origin"] == "stored" else model["name"]
    return name, *where, model["leases"], idle, stays


def _stays(keep_alive: float | None) -> str:
    if keep_alive is None or keep_alive >= LONGEST_S:
        return "while it fits"
    return "pinned" if keep_alive < 0 else f"{keep_alive:,.0f} s"

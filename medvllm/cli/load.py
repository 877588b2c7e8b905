"""`medvllm load` and `medvllm unload`: which models a server has in memory."""

from typing import TYPE_CHECKING, Annotated

import typer

from medvllm.cli.completion import model_names
from medvllm.cli.output import printable
from medvllm.cli.streams import say
from medvllm.errors import ServerError
from medvllm.quantities import parse_duration

if TYPE_CHECKING:
    from medvllm.client import Client

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A name of the server's catalogue.", autocompletion=model_names)
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The server, asked with the key of MEDVLLM_API_KEY; the one of this user by default."
    ),
]


def load(
    name: Name,
    keep_alive: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long it stays when it is idle, such as 10m; -1 for always."),
    ] = None,
    server: Server = None,
) -> None:
    """Load a model into the memory of a server, so that its first request need not wait."""
    if keep_alive is not None:
        try:
            parse_duration(keep_alive)
        except ValueError as error:
            raise typer.BadParameter(f"{keep_alive!r} is {error}", param_hint="--keep-alive") from None
    with _client(server) as client:
        found = client.load(name, keep_alive=keep_alive)
        say(f"The server at {client.url} has {printable(found['model'])}@{found['version']} in memory.")


def unload(name: Name, server: Server = None) -> None:
    """Let the models of an entry leave the memory of a server, once their last request is answered."""
    with _client(server) as client:
        count = client.unload(name)
        say(f"{count} {'model' if count == 1 else 'models'} left the memory of the server at {client.url}.")


def _client(server: str | None) -> "Client":
    if server is not None:
        from medvllm.client.local_client import client_of_command

        return client_of_command(server)
    from medvllm.client.resident import find_resident

    if (found := find_resident()) is None:
        raise ServerError(
            "No server of this user runs here with the same catalogue and settings.\n"
            "Start one: medvllm serve\nOr name one: --server URL"
        )
    return found

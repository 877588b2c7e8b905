"""`medvllm serve`: the models of the catalogue over HTTP."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medvllm.api_keys import new_key
from medvllm.cli.completion import model_names
from medvllm.cli.output import printable
from medvllm.cli.parameters import split_pair
from medvllm.cli.streams import say
from medvllm.engines.kinds import check_engine
from medvllm.errors import MissingDependencyError, SettingError
from medvllm.model_registry import registry

if TYPE_CHECKING:
    import socket

logger = logging.getLogger(__name__)


def serve(
    host: Annotated[str, typer.Option(help="The address to listen on. 0.0.0.0 is every IPv4 one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 for any free one.")] = 8000,
    load: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Load this model at the start, and keep it.", autocompletion=model_names),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What computes requests that do not say it: torch, onnx, openvino, or auto for the fastest. Where an "
            "engine cannot compute a model, torch does."
        ),
    ] = "torch",
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The certificate for TLS with its chain, as PEM."),
    ] = None,
    certificate_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its key, as PEM, if FILE of --certificate does not have it.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name under which clients reach the server, for example behind a proxy."),
    ] = None,
    redaction_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="A secret key that clients can name, for hashes and shifted dates: its file."
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Require no API key, whoever can reach the server.")] = (
        False
    ),
) -> None:
    """Serve the models of the catalogue over HTTP, in the protocols of OpenAI, Triton and others.

    Only this machine can reach the server. On another address it requires an API key: medvllm key add NAME.

    Each request is a line of JSON on standard error, without its text. SIGTERM ends the server once the requests that
    run are answered, after 30 seconds at the latest.
    """
    try:
        from medvllm.engine.model_runner.engine_lease import lease_for_task
        from medvllm.server.config import ServerConfig
        from medvllm.server.keyring import read_keys
        from medvllm.server.listening import is_loopback, listen, url_of
        from medvllm.server.running import make_server, run
        from medvllm.server.tracing import tracing_of_environment
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "The server needs packages that are not installed.\nInstall them with: pip install 'medvllm[serve]'",
            package=error.name,
        ) from error
    keys = _read_redaction_keys(redaction_key or [])
    listener = listen(host, port)
    with listener:
        api_keys = [] if insecure else read_keys(registry)
        has_keys = bool(api_keys)  # also if none is valid any more: who made one wants requests without one refused
        if has_keys and not any(key.is_valid for key in api_keys):
            say(
                "No API key is valid any more, so every request is refused.\n"
                "Make one: medvllm key add NAME\nTo let everybody use the server: --insecure"
            )
        if not (has_keys or insecure or is_loopback(listener)):
            raise SettingError(
                f"Other machines can reach {host!r}, and there is no API key that they would need.\n"
                "Make one: medvllm key add NAME\nTo let everybody use the server: --insecure"
            )
        own_key = new_key()
        config = ServerConfig(
            requires_key=has_keys,
            hosts=tuple(allow_host or ()),
            engine=check_engine(engine),
            loaded=tuple(load or ()),
            redaction_keys=keys,
            own_key=own_key,
        )
        paths = [None if path is None else str(path) for path in (certificate, certificate_key)]
        tracing = tracing_of_environment()
        server = make_server(registry, config, certificate=paths[0], certificate_key=paths[1], tracing=tracing)
        for name in load or ():
            registry.get_metadata(name)  # what is not registered, clients could not ask for
            with lease_for_task(registry, name, {"keep_alive": -1}, config.engine, "float32", None):
                pass
            say(f"Loaded {printable(name)}.")
        if certificate is None and not is_loopback(listener):
            say("Anybody on the way can read texts and keys. Use --certificate, or a proxy with TLS.")
        if certificate is None:
            _publish(listener, own_key)
        _announce(listener, url_of(listener, "http" if certificate is None else "https"), has_keys=has_keys)
        run(server, listener)


def _read_redaction_keys(stated: list[str]) -> dict[str, Path]:
    """Return the files of NAME=FILE by their names. SettingError: one has no key that can be used."""
    from medvllm.engine.model_runner.redaction.keys import read_key_file

    found: dict[str, Path] = {}
    for text in stated:
        name, file = split_pair(text, "--redaction-key")
        if name in found:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--redaction-key")
        found[name] = Path(file).absolute()
        read_key_file(found[name], f"--redaction-key {name}")
    return found


def _publish(listener: "socket.socket", key: str) -> None:
    """Let commands of this user find the server. If that fails, they load models themselves."""
    from medvllm.client.conditions import current_conditions
    from medvllm.client.server_record import ServerRecord
    from medvllm.processes.process import Process
    from medvllm.server.listening import local_url_of

    try:
        ServerRecord(local_url_of(listener), key, current_conditions(), Process.current()).publish()
    except OSError as error:
        logger.info("commands of this user cannot find the server: %s", error.strerror)


def _announce(listener: "socket.socket", url: str, *, has_keys: bool) -> None:
    say(f"Serving at {url}, {'with API keys' if has_keys else 'without API keys'}. Ctrl-C ends it.")

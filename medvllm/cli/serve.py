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

    from medvllm.server.config import ServerConfig
    from medvllm.server.tracing import Tracing

logger = logging.getLogger(__name__)

_REPLICAS = 2


def serve(
    address: Annotated[
        str | None,
        typer.Argument(help="With --ray: the address of a Ray cluster that this machine belongs to, or auto."),
    ] = None,
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
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Have several processes answer: in the cluster at ADDRESS, or else in a Ray on this machine."
        ),
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="With --ray: how many processes load models and answer; 2 by default.")
    ] = None,
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
        from medvllm.server.listening import is_loopback, listen
        from medvllm.server.running import make_server, run
        from medvllm.server.tracing import tracing_of_environment
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "The server needs packages that are not installed.\nInstall them with: pip install 'medvllm[serve]'",
            package=error.name,
        ) from error
    if address is not None and not ray:
        raise typer.BadParameter(f"{address!r} is an address of Ray, so give --ray, too", param_hint="ADDRESS")
    if replicas is not None and not ray:
        raise typer.BadParameter("replicas are processes in Ray, so give --ray, too", param_hint="--replicas")
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
        config = ServerConfig(
            requires_key=has_keys,
            hosts=tuple(allow_host or ()),
            engine=check_engine(engine),
            loaded=tuple(load or ()),
            redaction_keys=keys,
            own_key=None if ray else new_key(),
        )
        paths = [None if path is None else str(path) for path in (certificate, certificate_key)]
        tracing = tracing_of_environment()
        for name in config.loaded:
            registry.get_metadata(name)  # what is not registered, clients could not ask for
        if certificate is None and not is_loopback(listener):
            say("Anybody on the way can read texts and keys. Use --certificate, or a proxy with TLS.")
        has_tls = certificate is not None
        if ray:
            _serve_with_ray(listener, config, address, replicas or _REPLICAS, paths, tracing)
            return
        server = make_server(registry, config, certificate=paths[0], certificate_key=paths[1], tracing=tracing)
        for name in config.loaded:
            with lease_for_task(registry, name, {"keep_alive": -1}, config.engine, "float32", None):
                pass
            say(f"Loaded {printable(name)}.")
        if config.own_key is not None and not has_tls:
            _publish(listener, config.own_key)
        _announce(listener, config, has_tls=has_tls)
        run(server, listener)


def _serve_with_ray(
    listener: "socket.socket",
    config: "ServerConfig",
    address: str | None,
    replicas: int,
    certificate: list[str | None],
    tracing: "Tracing | None",
) -> None:
    try:
        from medvllm.server.replicas.cluster import replicas_in_ray
        from medvllm.server.replicas.front import create_front
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Ray is not installed.\nInstall it with: pip install 'medvllm[ray]'", package=error.name
        ) from error
    from medvllm.server.listening import url_of
    from medvllm.server.running import make_server_of, run

    place = url_of(listener, "http").removeprefix("http://")
    with replicas_in_ray(config, address, replicas, place=place) as handle:
        app = create_front(registry, config, handle, tracing=tracing)
        server = make_server_of(app, certificate=certificate[0], certificate_key=certificate[1])
        _announce(listener, config, has_tls=certificate[0] is not None, replicas=replicas)
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


def _announce(listener: "socket.socket", config: "ServerConfig", *, has_tls: bool, replicas: int = 1) -> None:
    from medvllm.server.listening import url_of

    url = url_of(listener, "https" if has_tls else "http")
    keys = "with API keys" if config.requires_key else "without API keys"
    by = f", by {replicas} replica{'s' if replicas > 1 else ''} in Ray"
    say(f"Serving at {url}, {keys}{by if config.own_key is None else ''}. Ctrl-C ends it.")

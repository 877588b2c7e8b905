"""Runs a server until it is told to end."""

import logging
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from medvllm.errors import SettingError
from medvllm.server.app import create_app
from medvllm.server.connection import Connection
from medvllm.server.tracing import Tracing

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from medvllm.model_registry import ModelRegistry
    from medvllm.server.config import ServerConfig

DRAIN_S = 30  # for requests that run when the server is told to end
_KEEP_ALIVE_S = 75  # an idle connection: longer than proxies keep theirs, so that they never use one that ends


def make_server(
    registry: "ModelRegistry",
    config: "ServerConfig",
    *,
    certificate: str | None = None,
    certificate_key: str | None = None,
    tracing: Tracing | None = None,
) -> uvicorn.Server:
    """Return a server of the models of a registry, as `make_server_of` does.

    Args:
        registry: The models.
        config: The limits.
        certificate: As for `make_server_of`.
        certificate_key: As for `make_server_of`.
        tracing: Makes a span of each request; None for none.

    Raises:
        SettingError: The certificate cannot be used.
    """
    app = create_app(registry, config, tracing=tracing)
    return make_server_of(app, certificate=certificate, certificate_key=certificate_key)


def make_server_of(
    app: "ASGIApp", *, certificate: str | None = None, certificate_key: str | None = None
) -> uvicorn.Server:
    """Return a server, which `run` with a listening socket starts. On SIGTERM it completes its requests, and ends.

    Args:
        app: What answers.
        certificate: A file with the certificate for TLS, and those that it depends on; None for plain HTTP.
        certificate_key: The file with its key, if the other one does not have it.

    Raises:
        SettingError: The certificate cannot be used.
    """
    made = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=certificate,
        ssl_keyfile=certificate_key,
    )
    try:
        made.load()  # here, so that an error of the certificate is raised before the server is said to run
    except OSError as error:  # of the file, or of TLS
        why = (
            error.strerror if isinstance(error, FileNotFoundError | PermissionError) else "it is no PEM, or has no key"
        )
        raise SettingError(
            f"Certificate {certificate!r} cannot be used: {why}.\n"
            "Name both files: --certificate CHAIN.pem --certificate-key KEY.pem",
            value=certificate,
        ) from error
    return uvicorn.Server(made)


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C. Each request is a line of JSON on standard error."""
    log_requests()
    server.run([listener])


def log_requests() -> None:
    """Write a line of JSON on standard error for each request of this process."""
    access = logging.getLogger("medvllm.access")
    access.setLevel(logging.INFO)
    access.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)

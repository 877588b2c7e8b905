"""A real server on a free port of 127.0.0.1, in a thread of the test."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2

from medvllm.engine.model_runner import ModelRegistry
from medvllm.server.config import ServerConfig
from medvllm.server.listening import listen, url_of
from medvllm.server.running import make_server
from medvllm.server.tracing import Tracing


@contextmanager
def serving(
    registry: ModelRegistry, config: ServerConfig | None = None, *, tracing: Tracing | None = None
) -> Iterator[httpx2.Client]:
    """Yield a client of a server that serves the models of a registry."""
    server = make_server(registry, config or ServerConfig(), tracing=tracing)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        with httpx2.Client(base_url=url_of(listener, "http"), timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def connected(client: httpx2.Client) -> Iterator[socket.socket]:
    """Yield a connection to the server of a client, to send what a client would not."""
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=60) as connection:
        yield connection

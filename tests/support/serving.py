"""A real server on a free port of 127.0.0.1, in a thread of the test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import uvicorn

from medvllm.engine.model_runner import ModelRegistry
from medvllm.server.app import create_app
from medvllm.server.config import ServerConfig


@contextmanager
def serving(registry: ModelRegistry, config: ServerConfig | None = None) -> Iterator[httpx2.Client]:
    """Yield a client of a server that serves the models of a registry."""
    server = uvicorn.Server(uvicorn.Config(create_app(registry, config), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()

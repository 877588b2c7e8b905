"""A server that answers as a test says, and keeps what it was sent: one that is broken, slow, or not ours."""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Sent:
    """A request: its path, headers and body."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An answer. A body that is shorter than `length` breaks off."""

    status: int
    body: bytes = b"{}"
    headers: Mapping[str, str] | None = None
    length: int | None = None


HUNG_UP = Reply(0)  # it closes the connection, and answers nothing
RESET = Reply(-1)  # the same, as a process that is killed does it
DRIPPING = Reply(200, b" ", length=1_000_000)  # a byte from time to time
Script = Callable[[Sent], Reply | None]  # None: it never answers


class Scripted(ThreadingHTTPServer):
    """The server, with its address and the requests that came so far."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: the client went away."""

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.sent, self.ending = script, list[Sent](), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Scripted

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        sent = Sent(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.server.sent.append(sent)
        if (reply := self.server.script(sent)) is None:
            self.server.ending.wait()
            self.close_connection = True
            return
        if reply == HUNG_UP:
            self.close_connection = True
            return
        if reply == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in (reply.headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
        self.end_headers()
        self.wfile.write(reply.body)
        while reply is DRIPPING and not self.server.ending.wait(0.01):
            self.wfile.write(reply.body)
        self.close_connection = reply.length is not None

    do_GET = do_POST

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@contextmanager
def scripted(script: Script) -> Iterator[Scripted]:
    """Yield a server that answers with what `script` returns for each request."""
    with Scripted(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()
            thread.join()

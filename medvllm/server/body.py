"""The body of a request: read within limits, decompressed, and parsed strictly."""

import asyncio
import zlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from medvllm.server.problem import Problem, ProblemError
from medvllm.server.strict_json import JSONError, parse_json

T = TypeVar("T")

_PARTS = "Send it in several requests."
# The formats of zlib by the names that HTTP has for them.
_ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_SMALL = 100_000  # bytes that take less time to parse than a thread takes to start


class OpenBodies:
    """Counts the bytes of the bodies of all requests, each until its answer is complete: so long, its texts are needed.

    Only the event loop changes the number.

    Args:
        app: What answers.
        limit: The most bytes.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit, self._size = app, limit, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whose state has what counts its bytes."""
        own = 0

        def add(size: int) -> None:
            nonlocal own
            if self._size + size > self._limit:
                message = "The requests that the server works on are as large as it allows, all together."
                raise ProblemError(Problem(429, "overloaded", f"{message}\nTry again later.", retry_after_s=1))
            self._size += size
            own += size

        scope.setdefault("state", {})["add_to_open"] = add
        try:
            await self._app(scope, receive, send)
        finally:
            self._size -= own


class StrictRequest(Request):
    """A request whose body is read and parsed as the server wants it.

    A large body is decompressed and parsed in a thread: meanwhile, the server answers others.
    """

    async def body(self) -> bytes:
        """Return the body, decompressed. ProblemError: it is too large, or compressed in an unknown way."""
        if not hasattr(self, "_body"):
            limit: int = self.state.config.max_body_bytes
            try:
                async with asyncio.timeout(self.state.config.body_timeout_s):
                    data = await self._read(limit)
            except TimeoutError:
                message = "The body did not arrive in time.\nSend it again."
                raise ProblemError(Problem(408, "request_timeout", message, retry_after_s=1)) from None
            except ClientDisconnect:
                message = "The client went away before its request was complete."
                raise ProblemError(Problem(499, "client_closed_request", message)) from None
            encoding = self.headers.get("content-encoding", "identity").strip().lower()
            if encoding in _ENCODINGS:
                data = await asyncio.to_thread(_decompress, data, encoding, limit)
                self.state.add_to_open(len(data))
            elif encoding != "identity":
                message = (
                    "The body may be compressed with gzip or deflate.\nSend it as it is, without Content-Encoding."
                )
                raise ProblemError(Problem(415, "unsupported_encoding", message, "Content-Encoding"))
            self._body = data
        return self._body

    async def json(self) -> Any:
        """Return the value of the JSON in the body. ProblemError: it is not the JSON that the server accepts."""
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = await parse(body, parse_json)
            except JSONError as error:
                raise ProblemError(Problem(400, "invalid_json", f"{error}.")) from None
        return self._json

    async def _read(self, limit: int) -> bytes:
        length = self.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise ProblemError(too_large(limit))
        parts, size = [], 0
        async for part in self.stream():
            size += len(part)
            if size > limit:
                raise ProblemError(too_large(limit))
            self.state.add_to_open(len(part))
            parts.append(part)
        return b"".join(parts)


class StrictRoute(APIRoute):
    """A route whose requests are strict."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of FastAPI, which is given a strict request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            # Bodies are JSON, whatever curl or another client calls them: FastAPI takes a body without a type for that.
            headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
            return await handler(StrictRequest({**request.scope, "headers": headers}, request.receive))

        return handle


async def parse(body: bytes, parser: Callable[[bytes], T]) -> T:
    """Return what a parser makes of a body: in a thread, if that may take long."""
    return parser(body) if len(body) < _SMALL else await asyncio.to_thread(parser, body)


def too_large(limit: int) -> Problem:
    """Return the problem of a body that is too large."""
    return Problem(
        413, "body_too_large", f"The body may have at most {limit:,} bytes, also after decompression.\n{_PARTS}"
    )


def _decompress(data: bytes, encoding: str, limit: int) -> bytes:
    """Return the bytes of a compressed stream, without making more than the limit of them."""
    stream = zlib.decompressobj(_ENCODINGS[encoding])
    try:
        found = stream.decompress(data, limit + 1)
    except zlib.error:
        raise ProblemError(Problem(400, f"invalid_{encoding}", f"The body is not {encoding}.")) from None
    if len(found) > limit:
        raise ProblemError(too_large(limit))
    if not stream.eof or stream.unused_data:
        message = f"The body is not one complete {encoding} stream."
        raise ProblemError(Problem(400, f"invalid_{encoding}", message))
    return found

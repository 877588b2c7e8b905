"""What a server tells of its requests: log, metrics, traces and headers. None of it has a text of a request."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medvllm.server.metrics import Metrics
from medvllm.server.problem import Problem, problem_of
from medvllm.server.rendering import render
from medvllm.server.rights import OPEN
from medvllm.server.served_runner import VERSION
from medvllm.server.tracing import Tracing

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("medvllm.access")

_FULL = Problem(503, "overloaded", "Too many requests are open.\nTry again later.", retry_after_s=1)
_ENDING = Problem(503, "server_ending", "The server ends.\nTry again later.", retry_after_s=5)
_MAX_OPEN = 700  # requests: the other connections are for those that are told so
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
# Notes stay out of the caches of browsers and proxies. A page states a wider policy of its own.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Journal:
    """Notes each request, and answers when an error has left everything else.

    The log has the pattern of the route, never the path or the query: a client may have put a text there.

    Args:
        app: What answers.
        metrics: Counts the requests.
        tracing: Makes a span of each request; None if nothing is configured.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None) -> None:
        self._app, self._metrics, self._tracing = app, metrics, tracing
        self._open = 0  # requests; only the event loop changes it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and note it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["about"] = about = {"request_id": uuid.uuid4().hex}
        seen = {"status": 499, "bytes": 0}  # the client went away before there was an answer
        started = time.perf_counter()
        headers = Headers(scope=scope)
        is_read = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"

        async def receive_on() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or (message["type"] == "http.request" and not message.get("more_body", False))
            return message

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                _add_headers(message, about, is_last=not is_read)
            seen["bytes"] += len(message.get("body", b""))
            await send(message)

        method = scope["method"] if scope["method"] in _METHODS else "other"
        span: AbstractContextManager[Any] = nullcontext()
        if self._tracing is not None:
            span = self._tracing.span(method, headers)
        self._open += 1
        with self._metrics.open(), span as current:
            try:
                if self._open > _MAX_OPEN and scope["path"] not in OPEN:
                    await render(_FULL, scope["path"])(scope, receive_on, send_on)
                else:
                    await self._app(scope, receive_on, send_on)
            except asyncio.CancelledError:  # the server ends, and has waited long enough
                if seen["status"] == 499:
                    await render(_ENDING, scope["path"])(scope, receive_on, send_on)
                raise
            except Exception as error:
                # Of an error of another library, only the type: its message may have a text.
                logger.error("request %s failed: %s", about["request_id"], type(error).__name__)
                if seen["status"] != 499:
                    raise ConnectionAbortedError("The answer was cut off.") from None
                await render(problem_of(error), scope["path"])(scope, receive_on, send_on)
            finally:
                self._open -= 1
                elapsed_s = time.perf_counter() - started
                route = route_of(scope)
                self._metrics.note(method, route, seen["status"], about.get("model"), elapsed_s)
                if self._tracing is not None and current is not None:
                    self._tracing.note(current, method, route, seen["status"], about.get("model"))
                self._log(scope, about, method, route, seen, elapsed_s)

    def _log(
        self,
        scope: MutableMapping[str, Any],
        about: dict[str, str],
        method: str,
        route: str,
        seen: dict[str, int],
        elapsed_s: float,
    ) -> None:
        if not access_logger.isEnabledFor(logging.INFO):
            return
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **about,
            "client": (scope.get("client") or ("",))[0],
            "key": scope["state"].get("key"),
            "method": method,
            "route": route,
            **seen,
            "duration_ms": round(elapsed_s * 1000, 3),
        }
        access_logger.info("%s", json.dumps(record))


def route_of(scope: MutableMapping[str, Any]) -> str:
    """Return the pattern of the route that answered, such as "/v1/models/{model}"; "none" if there is no such route."""
    return str(getattr(scope.get("route"), "path", "none"))


def _add_headers(message: Message, about: Mapping[str, str], *, is_last: bool) -> None:
    """Add the headers of every answer.

    Args:
        message: The head of the answer.
        about: What the log says of the request.
        is_last: Whether the connection ends with it: the rest of the request's body is not read.
    """
    headers = MutableHeaders(scope=message)
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers["X-Request-Id"] = about["request_id"]
    if VERSION in about and message["status"] < 400:
        headers["X-Medvllm-Version"] = about[VERSION]
    if is_last:
        headers["Connection"] = "close"

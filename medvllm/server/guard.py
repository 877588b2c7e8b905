"""Turns away requests before they are read: of unknown keys, from other sites, of two lengths or two meanings."""

import base64
import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from medvllm.api_keys import RIGHTS, ApiKey
from medvllm.errors import MedVLLMError
from medvllm.server.config import ServerConfig
from medvllm.server.html import is_page
from medvllm.server.keyring import Keyring
from medvllm.server.problem import Problem, problem_of
from medvllm.server.rendering import render
from medvllm.server.rights import OPEN, right_of

_ASK = "Ask whoever runs the server for a key that has it: medvllm key add NAME --right RIGHT"
_MAX_OPEN_BODY = 1000  # bytes, of requests that need no key
_OWN_KEY = "of the server's user"  # its name in the log
# Headers of which the server reads one value.
_SINGLE = ("authorization", "x-api-key", "x-medvllm-model", "content-encoding", "inference-header-content-length")
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="medvllm", Basic realm="medvllm", charset="UTF-8"'}


class Guard:
    """Lets a request through if it may have what it asks for, with the limits of its key in its state.

    Args:
        app: What answers.
        config: The limits and the hosts of the server.
        keyring: The keys.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, keyring: Keyring) -> None:
        self._app, self._config, self._keyring = app, config, keyring
        self._hosts = {"localhost", socket.gethostname().lower(), *(name.lower() for name in config.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["is_own"] = self._keyring.is_own(_presented_key(headers))  # a command of the server's user
        own_key = _OWN_KEY if state["is_own"] else None
        state["config"], state["key"], state["rights"] = self._config, own_key, RIGHTS
        problem = self._wrong_message(scope["method"], scope["path"], headers) or _said_twice(scope, headers)
        if problem is not None:
            await _refuse(problem, scope, receive, send)
            return
        if scope["path"] in OPEN:
            state["config"] = replace(self._config, max_body_bytes=_MAX_OPEN_BODY)
        if not self._config.requires_key or state["is_own"] or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        key = await self._admit(scope, headers)
        if isinstance(key, Problem):
            await _refuse(key, scope, receive, send)
            return
        state["config"], state["key"], state["rights"] = self._config.restricted(key.limits), key.name, key.rights
        limit, count = state["config"].max_concurrent, self._keyring.open_requests
        if limit is not None and count[key.name] >= limit:
            message = f"The key has {limit} requests open already, which is its limit.\nTry again after one of them."
            await _refuse(Problem(429, "too_many_requests", message, retry_after_s=1), scope, receive, send)
            return
        count[key.name] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            count[key.name] -= 1

    async def _admit(self, scope: Scope, headers: Headers) -> ApiKey | Problem:
        """Return the key of a request, or why it is refused."""
        presented = _presented_key(headers)
        try:
            key = None if presented is None else await self._keyring.find(presented)
        except MedVLLMError as error:
            return problem_of(error)
        if key is None:
            what = "needs an API key" if presented is None else "has an API key that the server does not accept"
            message = f"The request {what}.\nSend one that is valid: Authorization: Bearer KEY"
            return Problem(401, "invalid_api_key", message)
        if (right := right_of(scope["method"], scope["path"])) not in key.rights:
            allowed = ", ".join(key.rights) or "do nothing"
            message = f"The key may {allowed}, and this request needs the right to {right}.\n{_ASK}"
            return Problem(403, "permission_denied", message)
        return key

    def _wrong_message(self, method: str, path: str, headers: Headers) -> Problem | None:
        if "transfer-encoding" in headers and "content-length" in headers:
            message = "The request has both Transfer-Encoding and Content-Length.\nSend one of them."
            return Problem(400, "ambiguous_length", message)
        host = host_of(headers.get("host", ""))
        if not self._is_own(host):
            message = (
                "The server does not know the name in the header Host.\n"
                "Ask whoever runs the server to allow the name: medvllm serve --allow-host NAME"
            )
            return Problem(421, "unknown_host", message)
        origin = headers.get("origin")
        is_foreign = origin is not None and not self._is_of(origin, headers.get("host", ""))
        is_sent_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        # A link to a page may be followed. A picture with such an address would load a model.
        is_link = method == "GET" and is_page(path) and headers.get("sec-fetch-mode") == "navigate"
        if is_foreign or (is_sent_elsewhere and not is_link):
            return Problem(
                403,
                "foreign_origin",
                "Pages of other sites may not use the server.\nSend the request without Origin, from a program.",
            )
        return None

    def _is_of(self, origin: str, host: str) -> bool:
        """Return whether a page of an origin is one of this server: of the same name and, if it is stated, port."""
        try:
            page, own = urlsplit(origin), urlsplit(f"//{host}")
            is_same = page.hostname == own.hostname and (own.port is None or page.port == own.port)
        except ValueError:
            return False
        return is_same or page.hostname in self._config.hosts

    def _is_own(self, host: str) -> bool:
        if host in self._hosts:
            return True
        try:
            ipaddress.ip_address(host)  # no other site can have an address of this machine as its name
        except ValueError:
            return False
        return True


def host_of(header: str) -> str:
    """Return the host in a header such as "[::1]:8000", in lower case; an empty text if there is none."""
    try:
        return urlsplit(f"//{header}").hostname or "" if not set(header) & set("/?#@\\ ") else ""
    except ValueError:
        return ""


def _presented_key(headers: Mapping[str, str]) -> str | None:
    """Return the key that a request presents: as a bearer token, as a browser's password, or in X-API-Key."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except ValueError:  # no base64, no ASCII or no UTF-8
            return ""
    return headers.get("x-api-key")


def _said_twice(scope: Scope, headers: Headers) -> Problem | None:
    """Return the problem of a request that gives a value twice: the server and a proxy could each take another one."""
    if header := next((name for name in _SINGLE if len(headers.getlist(name)) > 1), None):
        return Problem(
            400, "ambiguous_header", f"The request has the header {header} more than once.\nSend one.", header
        )
    names = [name for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)]
    if len(names) > len(set(names)):
        message = "The query of the address has a parameter more than once.\nSend each of them once."
        return Problem(400, "ambiguous_query", message)
    return None


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    answer = render(problem, scope["path"])
    answer.headers.update(_CHALLENGE if problem.status == 401 else {})
    await answer(scope, receive, send)

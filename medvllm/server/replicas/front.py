"""The front of a server with replicas: it turns away, reads the body, and has the replica answer that has the model."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from medvllm.errors import DeadlineError, RequestCancelledError
from medvllm.ray_cluster import ENDED
from medvllm.server.app import HANDLERS
from medvllm.server.body import OpenBodies, StrictRequest
from medvllm.server.calls import Calls, wait_for_disconnect
from medvllm.server.config import ServerConfig
from medvllm.server.context import Server
from medvllm.server.guard import Guard
from medvllm.server.head import Head
from medvllm.server.journal import Journal
from medvllm.server.keyring import Keyring
from medvllm.server.metrics import Metrics
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.replicas.everywhere import Join, join_of
from medvllm.server.replicas.exchange import pieces
from medvllm.server.replicas.target import find_model
from medvllm.server.replicas.unprefixed import Unprefixed
from medvllm.server.tracing import Tracing

if TYPE_CHECKING:
    from medvllm.model_registry import ModelRegistry

logger = logging.getLogger(__name__)

_ROUTING_S = 10.0  # beyond the seconds of the call itself
_SENT = ("type", "asgi", "http_version", "method", "scheme", "path", "query_string")
_ADDRESSES = ("client", "server")
_OF_BODY = ("content-encoding", "content-length", "transfer-encoding")
_LOST = (*ENDED, DeploymentUnavailableError, ReplicaUnavailableError)


def create_front(
    registry: "ModelRegistry", config: ServerConfig, replicas: DeploymentHandle[Any], *, tracing: Tracing | None = None
) -> Starlette:
    """Return the application that clients reach.

    Args:
        registry: Its catalogue has the names and the keys. No model is loaded here.
        config: The limits, which the replicas have, too.
        replicas: What answers.
        tracing: Makes a span of each request; None for none.
    """
    server = Server(registry, config, Calls(config))
    app = Starlette(routes=[Route("/livez", _is_live), Route("/{path:path}", Front(server, replicas))])
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(OpenBodies, limit=config.max_open_bytes)
    app.add_middleware(Head)
    app.add_middleware(Guard, config=config, keyring=Keyring(registry, config.own_key))
    app.add_middleware(Journal, metrics=Metrics(registry), tracing=tracing)
    app.add_middleware(Unprefixed)  # the outer one
    return app


async def _is_live(http: Request) -> Response:
    """Answer while this process runs, also while a replica begins."""
    return JSONResponse({"status": "ok"})


class Front:
    """Has replicas answer requests.

    Args:
        server: Its catalogue tells which model a name means.
        replicas: What answers.
    """

    def __init__(self, server: Server, replicas: DeploymentHandle[Any]) -> None:
        self._server, self._replicas = server, replicas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read a request, and send the answer of a replica, or of all."""
        scope.pop("route", None)  # the journal notes that of the replica
        http = StrictRequest(scope, receive)
        body = await http.body()
        sent = _without_encoding(scope, len(body)), *pieces(body)
        join = join_of(http.method, http.url.path)
        if join is None:
            messages = self._ask_one(await find_model(http, self._server), sent)
        else:
            messages = self._ask_all(join, sent)
        await Answer(http.scope, messages, send).send_until_gone(http)

    async def _ask_one(self, model: str, sent: tuple[Any, ...]) -> AsyncGenerator[Message]:
        handle = self._replicas.options(method_name="answer", stream=True, multiplexed_model_id=model)
        answer: Any = handle.remote(*sent)
        has_begun = is_complete = False
        try:
            async with asyncio.timeout(self._server.config.timeout_s + _ROUTING_S):
                messages: list[Message] = await anext(answer, [])
            while messages:
                for message in messages:
                    has_begun, is_complete = True, is_last(message)
                    yield message
                messages = await anext(answer, [])
        except BackPressureError:
            raise ProblemError(_FULL) from None
        except TimeoutError:
            await asyncio.to_thread(answer.cancel)
            raise DeadlineError("No replica began to answer in time.\nTry again later.") from None
        except _LOST:
            if not has_begun:
                raise ProblemError(_LOST_REPLICA) from None
        except (asyncio.CancelledError, GeneratorExit):
            if not is_complete:  # the client has gone
                await asyncio.to_thread(answer.cancel)
            raise

    async def _ask_all(self, join: Join, sent: tuple[Any, ...]) -> AsyncGenerator[Message]:
        try:
            asked: Any = self._replicas.broadcast("answer_whole", *sent)
            found = await asked.results_async(timeout_s=self._server.config.timeout_s, return_exceptions=True)
        except _LOST:
            raise ProblemError(_LOST_REPLICA) from None
        except TimeoutError:
            raise DeadlineError("Not all replicas answered in time.\nTry again later.") from None
        # A replica that has died has nothing in memory. One that does not answer may have.
        present = [each for each in found if not isinstance(each, (ActorDiedError, OutOfMemoryError))]
        if not present or any(isinstance(each, _LOST) for each in present):
            raise ProblemError(_LOST_REPLICA)
        if error := next((each for each in present if isinstance(each, BaseException)), None):
            raise error
        answers: dict[str, list[Message]] = dict(present)
        refused = [messages for messages in answers.values() if messages[0]["status"] != 200]
        if refused:
            for message in refused[0]:
                yield message
            return
        bodies = {name: b"".join(each["body"] for each in messages[1:]) for name, messages in answers.items()}
        body = join(bodies)
        start = next(iter(answers.values()))[0]
        MutableHeaders(raw=start["headers"])["content-length"] = str(len(body))
        yield start
        yield {"type": "http.response.body", "body": body}


_FULL = Problem(429, "overloaded", "Too many requests wait for a replica.\nTry again later.", retry_after_s=1)
_LOST_REPLICA = Problem(
    503, "replica_lost", "The process that worked on the request has ended.\nSend it again.", retry_after_s=1
)


class Answer:
    """An answer on its way to the client.

    Args:
        scope: The request.
        messages: The messages of the answer.
        send: Sends one to the client.
    """

    def __init__(self, scope: Scope, messages: AsyncGenerator[Message], send: Send) -> None:
        self._scope, self._messages, self._send = scope, messages, send
        self._has_begun = self._is_complete = False

    async def send_until_gone(self, http: Request) -> None:
        """Send the answer, unless the client of the request goes away.

        Raises:
            ConnectionAbortedError: The answer has no end.
            RequestCancelledError: The client went away before there was an answer.
        """
        running = asyncio.create_task(self._send_all())
        watch = asyncio.create_task(wait_for_disconnect(http))
        try:
            await asyncio.wait((running, watch), return_when=asyncio.FIRST_COMPLETED)
            if running.done() or self._is_complete:
                await running
            elif not self._has_begun:
                raise RequestCancelledError("The client went away before its request was answered.")
        finally:
            watch.cancel()
            if not running.done():
                running.cancel()
                await asyncio.wait((running,))

    async def _send_all(self) -> None:
        async with aclosing(self._messages):
            async for message in self._messages:
                self._note(message.pop("known", None), message)
                self._has_begun, self._is_complete = True, is_last(message)
                await self._send(message)
                if self._is_complete:
                    return
        raise ConnectionAbortedError("The answer was cut off.")

    def _note(self, known: Mapping[str, Any] | None, head: Message) -> None:
        """Note what the replica's journal knows of the request, for the journal here."""
        if known is not None:
            self._scope["state"]["about"].update(known["about"])
            self._scope["route"] = SimpleNamespace(path=known["route"])
            head["headers"] = [each for each in head["headers"] if each[0].lower() != b"connection"]


def is_last(message: Message) -> bool:
    """Return whether a message is the last one of an answer."""
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _without_encoding(scope: Scope, size: int) -> Scope:
    """Return what a replica is told of a request. Its body is no longer compressed, and has a length."""
    headers = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in _OF_BODY]
    headers.append((b"content-length", str(size).encode()))
    addresses = {name: None if (found := scope.get(name)) is None else tuple(found) for name in _ADDRESSES}
    return {name: scope[name] for name in _SENT if name in scope} | addresses | {"headers": headers}

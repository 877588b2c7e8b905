"""The application: routes, errors and headers of a server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException

from medvllm import __version__
from medvllm.errors import MedVLLMError
from medvllm.server import health, metrics, page
from medvllm.server.body import OpenBodies
from medvllm.server.calls import Calls
from medvllm.server.config import ServerConfig
from medvllm.server.context import Server
from medvllm.server.documentation import describe_api
from medvllm.server.guard import Guard
from medvllm.server.head import Head
from medvllm.server.journal import Journal
from medvllm.server.keyring import Keyring
from medvllm.server.metrics import Metrics
from medvllm.server.problem import Problem, ProblemError, log_failure, problem_for
from medvllm.server.protocols import (
    huggingface,
    medical,
    native,
    ollama,
    open_inference,
    openai,
    presidio,
    rerank,
    tei,
    vllm,
)
from medvllm.server.rendering import render
from medvllm.server.tracing import Tracing

if TYPE_CHECKING:
    from medvllm.model_registry import ModelRegistry


def create_app(
    registry: "ModelRegistry", config: ServerConfig | None = None, *, tracing: Tracing | None = None
) -> FastAPI:
    """Return the application that serves the models of a registry.

    Args:
        registry: The models.
        config: The limits; None for the default ones.
        tracing: Makes a span of each request; None for none.
    """
    config = config or ServerConfig()
    calls = Calls(config)

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        yield
        calls.close()

    app = FastAPI(
        title="medvllm",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=live,
        redirect_slashes=False,  # behind a proxy with TLS, a client would send its text again without TLS
        strict_content_type=False,  # many clients send JSON without a Content-Type
    )
    app.state.server, app.state.metrics = Server(registry, config, calls), Metrics(registry)
    # Cohere's /v2/rerank comes before the names of models that the Open Inference Protocol has there.
    own = (openai, ollama, medical, native, rerank, tei, vllm, huggingface, presidio)
    for protocol in (*own, open_inference, health, metrics, page):
        app.include_router(protocol.router)
    app.openapi = partial(_describe_once, app)  # type: ignore[method-assign]
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(OpenBodies, limit=config.max_open_bytes)
    app.add_middleware(Head)
    app.add_middleware(Guard, config=config, keyring=Keyring(registry, config.own_key))
    app.add_middleware(Journal, metrics=app.state.metrics, tracing=tracing)  # the outer one
    return app


def _describe_once(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = describe_api(app)
    return app.openapi_schema


async def _answer_problem(http: Request, error: Exception) -> Response:
    problem = problem_for(http, error)
    log_failure(http, error, problem)
    return render(problem, http.url.path)


async def _answer_http_error(http: Request, error: Exception) -> Response:
    if isinstance(error, ProblemError):
        return render(error.problem, http.url.path)
    assert isinstance(error, HTTPException)
    code, message = _HTTP_ERRORS.get(error.status_code, ("invalid_request", "The request cannot be read."))
    answer = render(Problem(error.status_code, code, message), http.url.path)
    if error.status_code == 405:
        answer.headers["Allow"] = ", ".join(sorted(_methods_of(http)))
    return answer


def _methods_of(http: Request) -> set[str]:
    """Return the methods that a path has. Starlette's own header has those of one route only."""
    contexts = iter_route_contexts(http.app.routes)
    found = {method for each in contexts if each.path_regex.match(http.url.path) for method in each.methods or ()}
    return found | ({"HEAD"} if "GET" in found else set())


async def _answer_invalid(http: Request, error: Exception) -> Response:
    """Answer a request that does not fit its schema. FastAPI's own answer would repeat the notes in it."""
    assert isinstance(error, RequestValidationError)
    # Of a field with several types, the type that fits best says most. An unknown field may be a missing one, misspelt.
    first: dict[str, Any] = max(error.errors(), key=lambda each: (len(each["loc"]), each["type"] == "extra_forbidden"))
    # The first part says whether it is in the body.
    field = ".".join(str(part) for part in first["loc"][1:] if not _is_type(part)) or "body"
    message = (
        f"{field}: {_MESSAGES.get(first['type'], 'it cannot be used')}.\nThe fields of each route: GET /openapi.json"
    )
    return render(Problem(422, "invalid_request", message, field), http.url.path)


def _is_type(part: object) -> bool:
    """Return whether a part of a place is one of several types, as pydantic writes it, and no key."""
    return isinstance(part, str) and (part in _TYPES or "[" in part)


# Those that fields with several types have, beside lists and others that are written with brackets.
_TYPES = ("str", "int", "float", "bool", tei.Sentences.__name__, rerank.Document.__name__)
_ROUTES = "The routes and their methods: GET /openapi.json"
_HTTP_ERRORS = {
    404: ("not_found", f"There is no such route.\n{_ROUTES}"),
    405: ("method_not_allowed", f"The route has no such method.\n{_ROUTES}"),
}
# Pydantic's own messages may quote what was given.
_MESSAGES = {
    "missing": "it is missing",
    "extra_forbidden": "there is no such field",
    "string_type": "it must be a text",
    "list_type": "it must be a list",
    "dialect": "the request needs either documents, as Cohere has them, or texts, as Text Embeddings Inference does",
    "dict_type": "it must be an object",
    "int_type": "it must be a whole number",
    "float_type": "it must be a number",
    "bool_type": "it must be true or false",
    "model_attributes_type": "it must be an object",
    "greater_than_equal": "it is too small",
    "greater_than": "it is too small",
    "less_than_equal": "it is too large",
    "too_long": "it has too many items",
    "too_short": "it has too few items",
    "literal_error": "it is none of the values that the documentation lists",
}
HANDLERS: dict[Any, Any] = {
    MedVLLMError: _answer_problem,
    HTTPException: _answer_http_error,
    RequestValidationError: _answer_invalid,
}

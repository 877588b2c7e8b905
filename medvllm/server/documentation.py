"""The OpenAPI description of a server: each route with the errors that it may answer, in the shape of its protocol."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from medvllm.server.examples import schema_of
from medvllm.server.problem import Problem
from medvllm.server.rendering import content_of, protocol_of

_EXAMPLES = (
    Problem(400, "invalid_json", "The body is not JSON: Expecting value at line 1, column 1."),
    Problem(401, "invalid_api_key", "The request needs an API key.\nSend one: Authorization: Bearer KEY"),
    Problem(403, "model_gated", "The Hub does not give the model to the server: GatedModelError."),
    Problem(404, "model_not_found", "Model 'nr' is not registered. Did you mean: 'ner'?", "model"),
    Problem(408, "request_timeout", "The body did not arrive in time.", None, 1.0),
    Problem(413, "too_many_texts", "input has 3,000 texts; the server takes 2,048 in one request.", "input"),
    Problem(415, "unsupported_encoding", "The body may be compressed with gzip or deflate.", "Content-Encoding"),
    Problem(421, "unknown_host", "The server does not know the name in the header Host."),
    Problem(422, "invalid_request", "model: it is missing.", "model"),
    Problem(429, "overloaded", "The server already works on 320 requests.\nTry again later.", None, 1.0),
    Problem(499, "client_closed_request", "The request was cancelled before its answer was complete."),
    Problem(500, "internal_error", "The server failed.\nAsk whoever runs the server."),
    Problem(501, "not_installed", "Model 'ner' needs the package 'sacremoses'."),
    Problem(502, "hub_unreachable", "The server cannot reach the Hub: HubUnreachableError.", None, 10.0),
    Problem(503, "memory_full", "Model 'ner' does not fit beside the models in use.", None, 5.0),
    Problem(504, "deadline_exceeded", "The answer was not complete within 300 s."),
    Problem(507, "model_too_large", "Model 'ner' needs more memory than the budget has."),
)
_LOOK_UP = (400, 401, 403, 404, 421, 422, 429, 499, 500, 503, 504)  # the others are about a body or a model's files


def describe_api(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description of an application."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = schema.setdefault("components", {})
    shared: dict[str, Any] = components.setdefault("responses", {})
    for route in iter_route_contexts(app.routes):
        described: Mapping[str, Any] = getattr(route, "responses", {}).get(200, {}).get("content", {})
        for method in route.methods or () if described else ():
            content = schema["paths"][route.path_format][method.lower()]["responses"]["200"]["content"]
            # As it is written: FastAPI leaves out what is null in an example.
            content.update({kind: content.get(kind, {}) | given for kind, given in described.items()})
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            takes_model = "requestBody" in operation or "{model}" in path
            for problem in _EXAMPLES:
                if takes_model or problem.status in _LOOK_UP:
                    name = f"{protocol_of(path).word}{problem.status}"
                    shared.setdefault(name, _describe(problem, path))
                    operation["responses"][str(problem.status)] = {"$ref": f"#/components/responses/{name}"}
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this server never answers
        components.get("schemas", {}).pop(name, None)
    return schema


def _describe(problem: Problem, path: str) -> dict[str, Any]:
    headers = {name: {"schema": {"type": "string"}, "example": value} for name, value in problem.headers().items()}
    schema = schema_of([content_of(each, path) for each in _EXAMPLES])
    content: Mapping[str, Any] = {"application/json": {"schema": schema, "example": content_of(problem, path)}}
    return {"description": problem.code.replace("_", " ").capitalize(), "headers": headers, "content": content}

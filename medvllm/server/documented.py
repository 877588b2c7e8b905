"""How OpenAPI describes the errors of a route, in the shape of its protocol."""

from typing import Any

from medvllm.server.problem import Problem
from medvllm.server.rendering import shape_of

_EXAMPLES = (
    Problem(400, "invalid_json", "The body is not JSON: Expecting value at line 1, column 1."),
    Problem(401, "invalid_api_key", "The request needs an API key.\nSend one: Authorization: Bearer KEY"),
    Problem(403, "model_gated", "The model cannot be loaded or run: GatedModelError."),
    Problem(404, "model_not_found", "Model 'nr' is not registered. Did you mean: 'ner'?", "model"),
    Problem(408, "request_timeout", "The body did not arrive in time.", None, 1.0),
    Problem(413, "too_many_texts", "input has 3,000 texts; the server takes 2,048 in one request.", "input"),
    Problem(415, "unsupported_encoding", "The body may be compressed with gzip only.", "Content-Encoding"),
    Problem(421, "unknown_host", "The server does not know the name in the header Host."),
    Problem(422, "invalid_request", "model: it is missing.", "model"),
    Problem(429, "overloaded", "The server already works on 320 requests.\nTry again later.", None, 1.0),
    Problem(499, "client_closed_request", "The request was cancelled before its answer was complete."),
    Problem(500, "internal_error", "The server failed. Its log says why."),
    Problem(501, "not_installed", "Model 'ner' needs the package 'sacremoses'."),
    Problem(502, "hub_unreachable", "The model cannot be loaded or run: HubUnreachableError.", None, 10.0),
    Problem(503, "memory_full", "Model 'ner' does not fit beside the models in use.", None, 5.0),
    Problem(504, "deadline_exceeded", "The answer was not complete within 300 s."),
    Problem(507, "model_too_large", "Model 'ner' needs more memory than the budget has."),
)
_LOOK_UP = (401, 403, 404, 421, 422, 429, 499, 500, 503, 504)  # the others are about a body or a model's files


def errors_of(path: str, *, is_look_up: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the errors that a route may answer with, for its `responses`.

    Args:
        path: The route's path, which tells its protocol.
        is_look_up: Whether the route only looks into the catalogue.
    """
    shape = shape_of(path)
    return {
        problem.status: {
            "description": problem.code.replace("_", " ").capitalize(),
            "content": {"application/json": {"example": shape(problem)}},
        }
        for problem in _EXAMPLES
        if not is_look_up or problem.status in _LOOK_UP
    }


def answer_of(example: Any) -> dict[str, Any]:
    """Return the description of a good answer, for a route's `responses`."""
    return {"content": {"application/json": {"example": example}}}

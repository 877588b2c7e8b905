"""How each protocol shows a problem. The path of a request tells its protocol."""

from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse, Response

from medvllm.server.html import is_page, render_problem
from medvllm.server.problem import Problem


def render(problem: Problem, path: str) -> Response:
    """Return the answer for a problem, in the shape of the protocol of a path, or as a page."""
    if is_page(path):
        return render_problem(problem)
    return JSONResponse(shape_of(path)(problem), problem.status, problem.headers())


def shape_of(path: str) -> Callable[[Problem], dict[str, Any]]:
    """Return what makes the content of an answer from a problem, in the protocol of a path."""
    return next(shape for prefixes, shape in _SHAPES if path.startswith(prefixes))


def openai_error(problem: Problem) -> dict[str, Any]:
    """Return the record of a problem as OpenAI's API has it."""
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
    place = {"index": problem.position, "id": problem.text_id}
    return error | {key: value for key, value in place.items() if value is not None}


def _openai(problem: Problem) -> dict[str, Any]:
    return {"error": openai_error(problem)}


def _native(problem: Problem) -> dict[str, Any]:
    """The server's own client: it raises the library's error again."""
    own = {} if problem.kind is None else {"kind": problem.kind, "details": dict(problem.details)}
    return {"error": openai_error(problem) | own}


def _text(problem: Problem) -> dict[str, Any]:
    """The Open Inference Protocol, Ollama, Presidio and Hugging Face: a text."""
    return {"error": problem.message}


def _cohere(problem: Problem) -> dict[str, Any]:
    return {"message": problem.message}


def _tei(problem: Problem) -> dict[str, Any]:
    kinds = {413: "validation", 422: "validation", 429: "overloaded", 503: "overloaded", 404: "backend"}
    return {"error": problem.message, "error_type": kinds.get(problem.status, "backend")}


# The first that fits. `/v2/rerank` is Cohere's, all else below `/v2` is of the Open Inference Protocol.
_SHAPES: tuple[tuple[str | tuple[str, ...], Callable[[Problem], dict[str, Any]]], ...] = (
    (("/v1/rerank", "/v2/rerank"), _cohere),
    (("/v1/run", "/v1/load", "/v1/unload", "/v1/memory"), _native),
    (("/v2", "/api/", "/presidio/", "/models/"), _text),
    (("/rerank", "/predict", "/embed", "/similarity", "/info"), _tei),
    ("/", _openai),
)

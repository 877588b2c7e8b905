"""How each protocol shows a problem. The path of a request tells its protocol."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from fastapi.responses import JSONResponse, Response

from medvllm.server.advice import for_client
from medvllm.server.html import is_page, render_problem
from medvllm.server.problem import Problem


class Protocol(NamedTuple):
    """How a problem is answered.

    Attributes:
        word: A word for the shape.
        write: Returns the content of an answer.
        names: What the protocol calls the library's options, as `for_client` takes it.
    """

    word: str
    write: Callable[[Problem], dict[str, Any]]
    names: Mapping[str, str] | None


def render(problem: Problem, path: str) -> Response:
    """Return the answer for a problem, in the shape of the protocol of a path, or as a page."""
    if is_page(path):
        return render_problem(in_words(problem, {}))
    return JSONResponse(content_of(problem, path), problem.status, problem.headers())


def content_of(problem: Problem, path: str) -> dict[str, Any]:
    """Return the content of an answer for a problem, in the shape and the words of the protocol of a path."""
    protocol = protocol_of(path)
    return protocol.write(in_words(problem, protocol.names))


def protocol_of(path: str) -> Protocol:
    """Return how the problems of a path are answered."""
    return next(protocol for prefixes, protocol in _PROTOCOLS if path.startswith(prefixes))


def in_words(problem: Problem, names: Mapping[str, str] | None) -> Problem:
    """Return a problem whose message leads out for the client. A command of the server's user needs no other words.

    Args:
        problem: The problem.
        names: What the client calls the library's options, as `for_client` takes it.
    """
    if problem.kind is None or problem.is_local:
        return problem
    param = problem.param if names is None or problem.param is None else names.get(problem.param) or problem.param
    return replace(problem, message=for_client(problem.message, names), param=param)


def _openai_error(problem: Problem) -> dict[str, Any]:
    """Return the record of a problem as OpenAI's API has it."""
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    error = {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}
    place = {"index": problem.position, "id": problem.text_id}
    return error | {key: value for key, value in place.items() if value is not None}


def _openai(problem: Problem) -> dict[str, Any]:
    return {"error": _openai_error(problem)}


def _native(problem: Problem) -> dict[str, Any]:
    """The server's own client: it raises the library's error again."""
    own = {} if problem.kind is None else {"kind": problem.kind, "details": dict(problem.details)}
    return {"error": _openai_error(problem) | own}


def _text(problem: Problem) -> dict[str, Any]:
    """The Open Inference Protocol, Ollama, Presidio and Hugging Face: a text."""
    return {"error": problem.message}


def _cohere(problem: Problem) -> dict[str, Any]:
    return {"message": problem.message}


def _tei(problem: Problem) -> dict[str, Any]:
    kinds = {413: "validation", 422: "validation", 429: "overloaded", 503: "overloaded", 404: "backend"}
    return {"error": problem.message, "error_type": kinds.get(problem.status, "backend")}


# The first that fits. `/v2/rerank` is Cohere's, all else below `/v2` is of the Open Inference Protocol.
_PROTOCOLS: tuple[tuple[str | tuple[str, ...], Protocol], ...] = (
    (("/v1/rerank", "/v2/rerank"), Protocol("Cohere", _cohere, {"top_k": "top_n", "long_input": ""})),
    (("/v1/run", "/v1/load", "/v1/unload", "/v1/memory"), Protocol("Native", _native, None)),
    ("/v2", Protocol("Text", _text, {"long_input": "long_input"})),
    (
        "/models/",
        Protocol(
            "Text",
            _text,
            {"activation": "function_to_apply", "aggregation": "aggregation_strategy", "long_input": ""},
        ),
    ),
    ("/api/", Protocol("Text", _text, {"long_input": ""})),
    (
        "/presidio/",
        Protocol(
            "Text",
            _text,
            {"threshold": "score_threshold", "labels": "entities", "operators": "anonymizers", "long_input": ""},
        ),
    ),
    (
        ("/rerank", "/predict", "/embed", "/similarity", "/info"),
        Protocol("TEI", _tei, {"activation": "", "long_input": ""}),
    ),
    (("/classify", "/score", "/v1/score"), Protocol("OpenAI", _openai, {"activation": "", "long_input": ""})),
    (("/v1/entities", "/v1/classify"), Protocol("OpenAI", _openai, {"long_input": "long_text"})),
    ("/", Protocol("OpenAI", _openai, {"max_new_tokens": "max_tokens", "long_input": ""})),
)

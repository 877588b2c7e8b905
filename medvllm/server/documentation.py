"""The OpenAPI description of a server: each route with the errors that it may answer, in the shape of its protocol."""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from medvllm.server.problem import Problem
from medvllm.server.rendering import render

_PROBLEMS = (
    Problem(400, "invalid_json", "The body is not JSON: Expecting value at line 1, column 1."),
    Problem(404, "model_not_found", "Model 'nr' is not registered. Did you mean: 'ner'?", "model"),
    Problem(413, "body_too_large", "The body may have at most 16,777,216 bytes, also after decompression."),
    Problem(415, "unsupported_encoding", "The body may be compressed with gzip only.", "Content-Encoding"),
    Problem(422, "input_too_long", "Text 1 is longer than the 512 tokens that the model takes.", position=0),
    Problem(429, "overloaded", "The server already works on 320 requests.\nTry again later.", retry_after_s=1),
    Problem(500, "model_unusable", "The model cannot be loaded or run: LoadError."),
    Problem(501, "not_installed", "Surrogates need Faker."),
    Problem(502, "hub_unreachable", "The model cannot be loaded or run: HubUnreachableError.", retry_after_s=10),
    Problem(503, "memory_full", "The model needs 438 MB, and all other models are in use.", retry_after_s=5),
    Problem(504, "deadline_exceeded", "The deadline of 300 s has passed."),
    Problem(507, "model_too_large", "The model needs 26 GB, and the memory budget is 8 GB."),
)


def describe_api(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description of an application."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            takes_model = "requestBody" in operation or "{model}" in path
            errors = {str(problem.status): _describe(problem, path) for problem in _PROBLEMS}
            operation["responses"] = {
                **{status: answer for status, answer in operation["responses"].items() if status not in errors},
                **(errors if takes_model else {}),
            }
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which this server never answers
        schema.get("components", {}).get("schemas", {}).pop(name, None)
    return schema


def _describe(problem: Problem, path: str) -> dict[str, Any]:
    answer = render(problem, path)
    headers = {name: {"schema": {"type": "string"}, "example": value} for name, value in problem.headers().items()}
    content = {"application/json": {"schema": {"type": "object"}, "example": json.loads(bytes(answer.body))}}
    return {"description": problem.code.replace("_", " ").capitalize(), "headers": headers, "content": content}

"""`GET /v1/models` and `GET /v1/models/{model}`."""

import json
import re
from collections.abc import Generator, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from medvllm.metadata import ModelMetadata
from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.entries import iterate_entries, join_pages, known_facts, repository
from medvllm.server.examples import answer_of
from medvllm.server.streaming import stream_text

router = APIRouter(route_class=StrictRoute)


def _read_count(value: str) -> str:
    """Return the digits of a query: pydantic would take "3.0", " 3" and "1_000" for numbers, too."""
    if not re.fullmatch("[0-9]{1,9}", value):
        raise PydanticCustomError("int_type", "not a whole number")
    return value


_Count = Annotated[int, BeforeValidator(_read_count)]
_Model = Annotated[str, Path(description="The name of an entry.", examples=["my-encoder"])]
_EXAMPLE = {
    "id": "dmis-lab/biobert-v1.1",
    "object": "model",
    "created": 0,
    "owned_by": "dmis-lab",
    "version": 1,
    "origin": "built-in",
    "model_type": "biomedical",
    "tasks": ["embed"],
    "max_length": 512,
}
_FACTS = ("version", "origin", "model_type", "tasks", "max_length")  # left out if they are not known


@router.get(
    "/v1/models",
    response_class=JSONResponse,
    responses={200: answer_of({"object": "list", "data": [_EXAMPLE], "has_more": False}, optional=_FACTS)},
)
async def list_models(
    http: Request,
    server: ServerOf,
    limit: Annotated[_Count | None, Query(ge=1, description="At most so many models; by default all.")] = None,
    after: Annotated[str | None, Query(max_length=200, description="Only names behind this one.")] = None,
) -> Response:
    """Return the models of the catalogue, sorted by name, each with what is known of it.

    All of them, in one list, unless `limit` is given: a client that knows of no pages must not miss one. `has_more`
    says whether there are others behind the last one. `created` is always 0.
    """

    def call() -> Generator[str]:
        more = False

        def pages() -> Iterator[list[str]]:
            nonlocal more
            left = limit
            for page in iterate_entries(server.registry, after, None if limit is None else limit + 1):
                if left is not None:
                    more, page = len(page) > left, page[:left]
                    left -= len(page)
                yield [json.dumps(describe_model(entry)) for entry in page]

        parts = join_pages('{"object":"list","data":[', pages(), "]")
        yield from parts
        yield f',"has_more":{json.dumps(more)}}}'

    return await stream_text(server.look_through(http, call), "application/json")


@router.get(
    "/v1/models/{model:path}",
    response_class=JSONResponse,
    responses={200: answer_of(_EXAMPLE, optional=_FACTS)},
)
async def get_model(model: _Model, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return what is known of a model: "name", "name@version" or "name@alias"; "name:version" is accepted, too."""
    return await server.look(http, lambda: describe_model(server.entry(model), asked=model))


def describe_model(entry: ModelMetadata, *, asked: str | None = None) -> dict[str, Any]:
    """Return a model as OpenAI describes one, with the facts of its entry.

    Args:
        entry: The entry.
        asked: The name by which a client asks for all details; None for the facts that a list has.
    """
    source = repository(entry)
    owner, slash, _ = (source or "").partition("/")
    facts = known_facts(entry, is_detailed=asked is not None)
    if asked is not None:
        facts = {"name": entry.name, **facts} | ({} if source is None else {"repository": source})
    head = {"id": asked or entry.name, "object": "model", "created": 0, "owned_by": owner if slash else "medvllm"}
    return head | facts

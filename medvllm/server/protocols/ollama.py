"""Ollama's API: which models there are, which are in memory, and vectors."""

import json
import time
from collections.abc import Generator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field

from medvllm import __version__
from medvllm.activations import scale
from medvllm.errors import ModelNotFoundError
from medvllm.local_files import local_files
from medvllm.metadata import ModelMetadata
from medvllm.model_registry import ModelRegistry
from medvllm.model_registry.loaded_models import LoadedModel
from medvllm.options import parse_keep_alive
from medvllm.quantities import LONGEST_S, PINNED
from medvllm.server.body import StrictRoute
from medvllm.server.context import Server, ServerOf
from medvllm.server.entries import iterate_entries, join_pages, known_facts
from medvllm.server.examples import answer_of
from medvllm.server.protocols.tei import TEIRequest
from medvllm.server.streaming import stream_text
from medvllm.server.texts import TolerantModel, check_texts
from medvllm.server.vectors import shorten

router = APIRouter(tags=["Ollama"], route_class=StrictRoute)

_DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": None,
    "parameter_size": "",
    "quantization_level": "",
}
_CAPABILITIES = {"embed": "embedding", "generate": "completion"}
_LISTED = {
    "name": "my-encoder",
    "model": "my-encoder",
    "modified_at": "1970-01-01T00:00:00+00:00",
    "size": 433_000_000,
    "digest": "6f1ed002ab559585",
    "details": _DETAILS,
}
_DETAILED = _LISTED | {"details": _DETAILS | {"family": "bert", "families": ["bert"]}}
_LOADED = {"expires_at": "2026-12-01T12:00:00+00:00", "size_vram": 0, "context_length": 512, "version": 1}


class EmbedRequest(TolerantModel):
    """The texts to embed. Unknown keys are ignored, as clients send keys of their own."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "my-encoder", "input": ["Patient denies chest pain."]}}
    )

    model: str
    input: str | list[str] | None = Field(default=None, description="Without texts, the model is only loaded.")
    dimensions: Annotated[int, Field(ge=1)] | None = None
    keep_alive: str | float | None = Field(
        default=None,
        description='How long the model stays in memory after its last use: "10m", seconds, 0, or -1 to pin it.',
    )


class ShowRequest(TolerantModel):
    """The model to show."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "my-encoder"}})

    model: str


@router.get("/api/version", responses={200: answer_of({"version": __version__})})
async def get_version() -> dict[str, str]:
    """Return the version of the server."""
    return {"version": __version__}


@router.get(
    "/api/tags",
    response_class=JSONResponse,
    responses={200: answer_of({"models": [_LISTED, _DETAILED]})},
)
async def list_tags(http: Request, server: ServerOf) -> Response:
    """Return the models of the catalogue. `size` is that of the weights on this machine: 0 before they are fetched."""

    def call() -> Generator[str]:
        pages = ([json.dumps(_describe(entry)) for entry in page] for page in iterate_entries(server.registry))
        return join_pages('{"models":[', pages, "]}")

    return await stream_text(server.look_through(http, call), "application/json")


@router.get(
    "/api/ps",
    responses={200: answer_of({"models": [_LISTED | _LOADED, _DETAILED | _LOADED]})},
)
async def list_running(http: Request, server: ServerOf) -> dict[str, Any]:
    """Return the models in memory. One that stays until its memory is needed expires in a hundred years."""
    return await server.look(http, lambda: {"models": _list_running(server.registry)})


@router.post(
    "/api/show",
    responses={
        200: answer_of(
            {"details": _DETAILS, "model_info": {}, "capabilities": []},
            {
                "details": _DETAILED["details"],
                "model_info": {"general.architecture": "bert", "bert.context_length": 512},
                "capabilities": ["embedding"],
            },
        )
    },
)
async def show_model(asked: ShowRequest, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return what is known of a model. The facts of its entry are in `model_info`."""
    return await server.look(http, lambda: _show(server.entry(asked.model)))


@router.post(
    "/api/embed",
    response_class=JSONResponse,
    responses={
        200: answer_of(
            {
                "model": "my-encoder",
                "embeddings": [[0.6, -0.8]],
                "total_duration": 14_000_000,
                "prompt_eval_count": 7,
            }
        )
    },
)
async def embed(asked: EmbedRequest, http: Request, server: ServerOf) -> Response:
    """Return a vector of length 1 for each text. Long texts are read in windows, also with `truncate`.

    Without texts, the model is loaded, and with `keep_alive` 0 it leaves the memory.
    """
    texts = [asked.input] if isinstance(asked.input, str) else asked.input or []
    if texts:
        check_texts(texts, server.config)
    return await server.run(http, lambda: JSONResponse(_embed(server, asked, texts)))


def _embed(server: Server, asked: EmbedRequest, texts: list[str]) -> dict[str, Any]:
    begin = time.perf_counter_ns()
    parse_keep_alive(asked.keep_alive)  # before anything is loaded
    vectors: list[list[float]] = []
    tokens = 0
    if texts:
        entry = server.entry(asked.model)
        runner = server.runner(entry.reference, keep_alive=asked.keep_alive)
        made = runner.embed(texts, long_input=TEIRequest().long_input(entry))  # an answer cannot say that it is cut
        vectors = scale(shorten(made.vectors, asked.dimensions, asked.model)).tolist()
        tokens = sum(coverage.tokens for coverage in made.coverage)
    else:
        with server.lease(asked.model, keep_alive=asked.keep_alive):
            pass
    counts = {"total_duration": time.perf_counter_ns() - begin, "prompt_eval_count": tokens}
    return {"model": asked.model, "embeddings": vectors, **counts}


def _list_running(registry: ModelRegistry) -> list[dict[str, Any]]:
    # A model that was loaded without an entry is no model of the server, and its name may be a path.
    loaded = [each for each in registry.loaded_models() if not each.evicted and each.origin != "direct"]
    return [_describe_running(each, registry) for each in loaded]


def _describe_running(loaded: LoadedModel, registry: ModelRegistry) -> dict[str, Any]:
    name, entry = _identify(loaded, registry)
    # Ollama's own programs show more than 20 years as "Forever".
    stays_s = LONGEST_S if loaded.keep_alive in (None, PINNED) else loaded.keep_alive
    return {
        **_head(name, loaded.size_bytes, entry),
        "details": _details(entry) | {"quantization_level": loaded.dtype},
        "expires_at": _moment(loaded.last_used + (stays_s or 0)),
        "size_vram": 0 if loaded.device == "cpu" else loaded.size_bytes,
        "context_length": (entry.behaviour.max_length if entry else None) or 0,
        "version": loaded.version,
    }


def _identify(loaded: LoadedModel, registry: ModelRegistry) -> tuple[str, ModelMetadata | None]:
    """Return the name that means a model in memory, and its entry, if it is still registered."""
    numbered = f"{loaded.name}@{loaded.version}"
    for name in (loaded.name, numbered):
        with suppress(ModelNotFoundError):
            if (found := registry.get_metadata(name)).version == loaded.version:
                return name, found
    return numbered, None


def _describe(entry: ModelMetadata) -> dict[str, Any]:
    files = local_files(entry)
    return _head(entry.name, 0 if files is None else files.size_bytes, entry)


def _head(name: str, size: int, entry: ModelMetadata | None) -> dict[str, Any]:
    names = {"name": name, "model": name, "modified_at": _moment(0)}
    return names | {"size": size, "digest": entry.digest if entry else "", "details": _details(entry)}


def _details(entry: ModelMetadata | None) -> dict[str, Any]:
    family = (entry.behaviour.architecture if entry else None) or ""
    base = (entry.source.base if entry else None) or ""
    return _DETAILS | {"parent_model": base, "family": family, "families": [family] if family else None}


def _show(entry: ModelMetadata) -> dict[str, Any]:
    family, length = entry.behaviour.architecture, entry.behaviour.max_length
    about: dict[str, Any] = {} if family is None else {"general.architecture": family}
    if family is not None and length is not None:
        about |= {f"{family}.context_length": length}
    about |= {f"medvllm.{fact}": value for fact, value in known_facts(entry, is_detailed=True).items()}
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "license": entry.license.license or "",
        "modified_at": _moment(0),
        "details": _details(entry),
        "model_info": about,
        "capabilities": [_CAPABILITIES[task] for task in entry.tasks if task in _CAPABILITIES],
    }


def _moment(seconds: float) -> str:
    """Return a moment as clients read it. That of a change is not known: it is the first one."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()

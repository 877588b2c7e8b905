"""The protocol of `medvllm.client`: each task with all its options, its whole results, and the models in memory."""

import base64
from collections.abc import Generator, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field

from medvllm.api_keys import prove
from medvllm.corpora.rows import count_characters
from medvllm.engine.model_runner.embedding.embed import Embeddings
from medvllm.engine.model_runner.generation.answers import Piece
from medvllm.engine.model_runner.request import Priority
from medvllm.engine.model_runner.results import Result
from medvllm.engine.model_runner.tasks import check_task
from medvllm.engines.kinds import EngineName, Precision
from medvllm.model_registry import ModelRegistry
from medvllm.receipt import Receipt
from medvllm.server.body import StrictRoute
from medvllm.server.config import ServerConfig
from medvllm.server.context import ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.receipts import describe_receipt
from medvllm.server.redaction_keys import use_server_keys
from medvllm.server.streaming import stream_events
from medvllm.server.texts import StrictModel, too_many

router = APIRouter(route_class=StrictRoute, tags=["medvllm"])

_RESERVED = ("self", "task", "texts", "with_receipt")
_ATTRIBUTES = ("classes", "similarity")  # of results, beside their records
_LOADED = {
    "name": "my-tagger",
    "version": 1,
    "origin": "stored",
    "device": "cpu",
    "dtype": "float32",
    "size_bytes": 433_000_000,
    "mapped_bytes": 433_000_000,
    "leases": 0,
    "last_used": 1790000000.0,
    "keep_alive": None,
    "evicted": False,
}


class RunRequest(StrictModel):
    """A task for a model.

    Attributes:
        model: A name of the catalogue, such as "ner", "ner@production" or "ner@3".
        task: The task; the model's own one by default.
        texts: The texts, or what the task takes in their place: pairs, lists of words, conversations.
        arguments: The options of the task, as `ModelRunner` has them. Secrets of operators are named, and never sent.
        engine: What computes; that of the server by default.
        precision: In which precision an engine may compute; float32 by default.
        receipt: Whether the answer has a receipt of what answered.
        stream: Whether a text that is generated comes piece by piece, as server-sent events.
        priority: "interactive" calls go before those that are "bulk".
        timeout_s: Seconds after which the call ends.
        keep_alive: How long the model stays in memory afterwards: seconds, or a duration such as "10m".
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "my-tagger", "task": "ner", "texts": ["Insulin was given."]}}
    )

    model: str
    task: str | None = None
    texts: list[Any]
    arguments: Annotated[dict[str, Any], Field(default_factory=dict)]
    engine: EngineName | None = None
    precision: Precision = "float32"
    receipt: bool = False
    stream: bool = False
    priority: Priority = "interactive"
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    keep_alive: float | str | None = None


class LoadRequest(StrictModel):
    """A model to load.

    Attributes:
        model: A name of the catalogue.
        keep_alive: How long it stays in memory after its last use: seconds, a duration such as "10m", or -1 for always.
    """

    model_config = ConfigDict(json_schema_extra={"example": {"model": "my-tagger", "keep_alive": "10m"}})

    model: str
    keep_alive: float | str | None = None


class UnloadRequest(StrictModel):
    """A model to unload."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "my-tagger"}})

    model: str


class IdentityRequest(StrictModel):
    """A text of the client's choice, which nobody has asked before."""

    nonce: Annotated[str, Field(min_length=32, max_length=128)]


@router.post(
    "/v1/run",
    response_class=JSONResponse,
    responses={
        200: answer_of(
            {"model": "my-tagger", "version": 1, "task": "ner", "records": [{"spans": []}]},
            optional=("spans",),
            events='data: {"text": "An", "position": 0, "answer": null}\n\ndata: [DONE]\n\n',
        )
    },
)
async def run_task(asked: RunRequest, http: Request, server: ServerOf) -> Response:
    """Run a task. The answer has the record of each text, as `to_dict()` of the library's result has it.

    If one text is at fault, the request is: `index` of the error says which text.
    """
    _check(asked, server.config)
    is_own: bool = http.state.is_own

    def call() -> Response:
        runner = server.runner(asked.model, asked.engine, asked.precision, keep_alive=asked.keep_alive)
        arguments = _arguments(asked, server.config)
        made = runner.run(asked.task, asked.texts, with_receipt=asked.receipt, **arguments)
        head = {"model": server.about["model"], "version": made.version, "task": made.task}
        return JSONResponse(head | _describe(made, is_own=is_own))

    def stream() -> Generator[Piece]:
        arguments = check_task("generate", asked.arguments)
        runner = server.runner(asked.model, asked.engine, asked.precision, keep_alive=asked.keep_alive)
        yield from runner.stream(asked.texts, **arguments)

    limits: dict[str, Any] = {"timeout_s": asked.timeout_s, "priority": asked.priority}
    if not asked.stream:
        return await server.run(http, call, **limits)
    if asked.task != "generate" or asked.receipt:
        message = "Only the task generate can be streamed, and a stream has no receipt."
        raise ProblemError(Problem(422, "invalid_request", message, "stream"))
    return await stream_events(http, server.stream(http, stream, **limits), _describe_piece)


@router.get("/v1/memory", responses={200: answer_of({"models": [_LOADED, _LOADED | {"keep_alive": 600.0}]})})
async def list_loaded(http: Request, server: ServerOf) -> dict[str, Any]:
    """Return the models in memory, in the order of loading."""
    return await server.look(http, lambda: {"models": list(_list_loaded(server.registry))})


@router.post("/v1/load", responses={200: answer_of({"model": "my-tagger", "version": 1})})
async def load(asked: LoadRequest, http: Request, server: ServerOf) -> dict[str, Any]:
    """Load a model into memory."""

    def call() -> dict[str, Any]:
        with server.lease(asked.model, keep_alive=asked.keep_alive) as lease:
            return {"model": lease.metadata.name, "version": lease.metadata.version}

    return await server.run(http, call)


@router.post("/v1/unload", responses={200: answer_of({"model": "my-tagger", "models": 1})})
async def unload(asked: UnloadRequest, http: Request, server: ServerOf) -> dict[str, Any]:
    """Let the models of an entry leave the memory, once their last request is answered. A request loads them again."""

    def call() -> dict[str, Any]:
        name = server.entry(asked.model).name
        return {"model": name, "models": server.registry.evict(name)}

    return await server.look(http, call)


@router.post("/v1/identity", include_in_schema=False)
async def prove_identity(asked: IdentityRequest, server: ServerOf) -> dict[str, Any]:
    """Show a command of the server's user that it talks to the server whose key it read."""
    if server.config.own_key is None:
        raise ProblemError(Problem(404, "not_found", "The server has no key of its own."))
    return {"proof": prove(server.config.own_key, asked.nonce)}


def _check(asked: RunRequest, config: ServerConfig) -> None:
    """Raise ProblemError if a request has more than the server takes."""
    if len(asked.texts) > config.max_texts:
        raise ProblemError(too_many(f"{len(asked.texts):,} texts", f"{config.max_texts:,}", "texts"))
    if (characters := count_characters([asked.texts, asked.arguments])) > config.max_characters:
        raise ProblemError(too_many(f"{characters:,} characters", f"{config.max_characters:,}", "texts"))
    if reserved := next((name for name in asked.arguments if name in _RESERVED), None):
        raise ProblemError(Problem(422, "invalid_request", f"No task has the option {reserved}.", "arguments"))


def _arguments(asked: RunRequest, config: ServerConfig) -> dict[str, Any]:
    """Return the options of the task, with the keys of the server that they name."""
    operators = asked.arguments.get("operators")
    if isinstance(operators, dict) and all(isinstance(operator, dict) for operator in operators.values()):
        return asked.arguments | {"operators": use_server_keys(operators, config.redaction_keys)}
    return asked.arguments


def _describe(made: Result, *, is_own: bool) -> dict[str, Any]:
    """Return the content of a result. Vectors are bytes in base64: 32-bit numbers, the lowest byte first."""
    found: dict[str, Any] = {name: getattr(made, name) for name in _ATTRIBUTES if hasattr(made, name)}
    if isinstance(made, Embeddings):
        data = base64.b64encode(made.vectors.astype("<f4").tobytes()).decode()
        found |= {"records": [each.to_dict() for each in made.coverage]}
        found |= {"vectors": {"shape": list(made.vectors.shape), "data": data}}
    else:
        found["records"] = made.to_dict()
    return found | ({} if made.receipt is None else {"receipt": _describe_receipt(made.receipt, is_own=is_own)})


def _describe_receipt(receipt: Receipt, *, is_own: bool) -> dict[str, Any]:
    return receipt.to_dict() if is_own else describe_receipt(receipt)


def _describe_piece(piece: Piece | None) -> Iterator[dict[str, Any]]:
    if piece is not None:
        answer = None if piece.answer is None else piece.answer.to_dict()
        yield {"text": str(piece), "position": piece.position, "answer": answer, "version": piece.version}


def _list_loaded(registry: ModelRegistry) -> Iterator[dict[str, Any]]:
    for model in registry.loaded_models():
        if model.origin != "direct":  # its name may be a path
            yield {name: value for name, value in model.to_dict().items() if name != "snapshot"}

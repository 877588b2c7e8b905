"""The routes of the Open Inference Protocol. Names of models may have slashes, so that longer routes come first."""

import gzip
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request, Response
from pydantic import ConfigDict, Field

from medvllm import __version__
from medvllm.engine.model_runner.tasks import parameters_of, task_of_entry
from medvllm.local_files import local_files
from medvllm.metadata import ModelMetadata
from medvllm.server.body import StrictRoute, parse
from medvllm.server.context import Server, ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.health import check_ready
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.open_inference.messages import (
    HEADER_LENGTH,
    INFER_BODY,
    InferAnswer,
    Inference,
    check_names,
    read_inference,
    write_answer,
)
from medvllm.server.protocols.open_inference.signatures import Signature, rows_of, signature_of
from medvllm.server.protocols.open_inference.tensors import invalid
from medvllm.server.texts import TolerantModel, check_texts

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=StrictRoute)

EXTENSIONS = ("model_repository", "binary_tensor_data")
# A task has no options of these names, or they are for the server to choose.
_RESERVED = ("task", "texts", "spans", "query", "with_receipt")
_MIN_GZIP = 1024  # bytes

_SERVER = answer_of({"name": "medvllm", "version": __version__, "extensions": list(EXTENSIONS)})
_READY = answer_of({"name": "my-tagger", "ready": True})
_STATES = answer_of([{"name": "my-tagger", "version": "3", "state": "READY", "reason": ""}])
_TENSORS = answer_of(
    {
        "name": "my-tagger",
        "versions": ["3"],
        "platform": "medvllm",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "entities", "datatype": "BYTES", "shape": [-1]}],
    }
)
_OUTPUTS = [{"name": "entities", "datatype": "BYTES", "shape": [1], "data": ["[]"]}]
_ANSWER = {
    "content": {
        "application/json": {"example": {"model_name": "my-tagger", "model_version": "3", "outputs": _OUTPUTS}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
    "headers": {
        HEADER_LENGTH: {
            "description": "How many bytes of the answer are JSON, if tensors are behind it.",
            "schema": {"type": "string"},
        }
    },
}

Model = Annotated[
    str, Path(description="The name of an entry, with @version or @alias if you like.", examples=["my-tagger"])
]
Version = Annotated[str, Path(description="The number of a version, or an alias.", examples=["1"])]


class IndexRequest(TolerantModel):
    """Which models to list."""

    model_config = ConfigDict(json_schema_extra={"example": {"ready": True}})

    ready: bool = False


class ModelRequest(TolerantModel):
    """How to load or unload a model. Triton's clients send keys of their own."""

    model_config = ConfigDict(json_schema_extra={"example": {}})

    parameters: Annotated[dict[str, Any], Field(default_factory=dict)]


@router.get("", responses={200: _SERVER})
def describe_server() -> dict[str, Any]:
    """Return the name and version of the server, and the extensions of the protocol that it has."""
    return {"name": "medvllm", "version": __version__, "extensions": list(EXTENSIONS)}


@router.get("/health/live", responses={200: answer_of({"live": True})})
def is_live() -> dict[str, Any]:
    """Answer with 200 while the server runs."""
    return {"live": True}


@router.get("/health/ready", responses={200: answer_of({"ready": True})})
async def is_ready(http: Request, server: ServerOf) -> dict[str, Any]:
    """Answer with 200 while the server can answer requests: its catalogue can be read."""
    await server.look(http, lambda: check_ready(server.registry))
    return {"ready": True}


@router.post("/repository/index", responses={200: _STATES})
async def list_repository(
    http: Request, server: ServerOf, asked: Annotated[IndexRequest | None, Body()] = None
) -> list[dict[str, Any]]:
    """Return the entries. READY are those in memory; a request loads any other."""
    return await server.look(http, lambda: _list(server, only_ready=asked is not None and asked.ready))


@router.post("/repository/models/{model:path}/load", responses={200: answer_of({})})
async def load(
    model: Model, http: Request, server: ServerOf, asked: Annotated[ModelRequest | None, Body()] = None
) -> dict[str, Any]:
    """Load a model into memory."""
    if asked is not None and asked.parameters:
        raise invalid("A model is loaded as its entry says: parameters of load are not supported.", "parameters")

    def call() -> None:
        with server.lease(model):
            pass

    await server.run(http, call)
    return {}


@router.post("/repository/models/{model:path}/unload", responses={200: answer_of({})})
async def unload(
    model: Model, http: Request, server: ServerOf, asked: Annotated[ModelRequest | None, Body()] = None
) -> dict[str, Any]:
    """Let a model leave memory, once its last request is answered. The next request loads it again."""
    await server.look(http, lambda: server.registry.evict(server.entry(model).name))
    return {}


@router.get("/models/stats", include_in_schema=False)
@router.get("/models/{model:path}/stats", include_in_schema=False)
@router.get("/models/{model:path}/config", include_in_schema=False)
def refuse_extension() -> None:
    """Refuse what Triton's tools ask for and this server does not have."""
    raise ProblemError(Problem(404, "not_found", f"The server has the extensions {', '.join(EXTENSIONS)} only."))


@router.get("/models/{model:path}/versions/{version}/ready", responses={200: _READY})
async def is_version_ready(model: Model, version: Version, http: Request, server: ServerOf) -> dict[str, Any]:
    """Answer with 200 if the version can be asked: its files are here, or it is in memory."""
    return await is_model_ready(f"{model}@{version}", http, server)


@router.get("/models/{model:path}/ready", responses={200: _READY})
async def is_model_ready(model: Model, http: Request, server: ServerOf) -> dict[str, Any]:
    """Answer with 200 if the model can be asked: its files are here. The first request loads it."""

    def call() -> dict[str, Any]:
        entry = server.entry(model)
        if local_files(entry) is None:
            message = f"The files of model {entry.name!r} are not on the server, which may have to fetch them."
            raise ProblemError(Problem(404, "model_not_ready", message))
        return {"name": entry.name, "ready": True}

    return await server.look(http, call)


@router.post(
    "/models/{model:path}/versions/{version}/infer",
    response_model=InferAnswer,
    responses={200: _ANSWER},
    openapi_extra=INFER_BODY,
)
async def infer_version(model: Model, version: Version, http: Request, server: ServerOf) -> Response:
    """Return the answer of one version of a model."""
    return await infer(f"{model}@{version}", http, server)


@router.post(
    "/models/{model:path}/infer", response_model=InferAnswer, responses={200: _ANSWER}, openapi_extra=INFER_BODY
)
async def infer(model: Model, http: Request, server: ServerOf) -> Response:
    """Return the answer of a model for the texts of a request, in JSON or with raw bytes behind it."""
    asked = await parse(await http.body(), partial(read_inference, header_length=http.headers.get(HEADER_LENGTH)))
    timeout_s, options = _take_timeout(asked)

    def call() -> Response:
        entry = server.entry(model)
        runner = server.runner(entry.reference)
        task = runner.task
        signature = signature_of(entry, task)
        _check(asked, signature)
        if task == "rerank" and "top_k" in options:
            raise invalid("The scores are those of all texts, in their order.\nLeave out: top_k")
        texts = rows_of(asked.inputs["text"], signature.inputs[0])
        others = [text for name, tensor in asked.inputs.items() if name != "text" for text in tensor.values]
        check_texts(texts, server.config, "inputs", others)
        specs = {spec.name: spec for spec in signature.outputs}
        names = asked.wanted or specs
        may_cut = entry.behaviour.long_input == "truncate" and "long_input" in parameters_of(task)
        if may_cut and "coverage" not in names:  # the answer could not say that a text was cut
            options.setdefault("long_input", "error")
        found = signature.read(runner.run(task, texts, **options, **signature.options(asked.inputs)))
        head = {"model_name": entry.name, "model_version": str(entry.version)}
        body, length = write_answer(head, {name: (specs[name].datatype, found[name]) for name in names}, asked)
        headers = {} if length is None else {HEADER_LENGTH: str(length)}
        if len(body) >= _MIN_GZIP and _accepts_gzip(http.headers.get("accept-encoding", "")):
            body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
        return Response(
            body, media_type="application/json" if length is None else "application/octet-stream", headers=headers
        )

    return await server.run(http, call, timeout_s=timeout_s)


@router.get("/models/{model:path}/versions/{version}", responses={200: _TENSORS})
async def describe_version(model: Model, version: Version, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return the tensors of one version of a model."""
    return await describe_model(f"{model}@{version}", http, server)


@router.get("/models/{model:path}", responses={200: _TENSORS})
async def describe_model(model: Model, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return the tensors of a model: what a request has, and what the answer has."""
    entry = await server.look(http, lambda: server.entry(model))
    ask = server.look if task_of_entry(entry) else server.run  # without a stated task, its model is loaded
    return await ask(http, lambda: _describe(server, entry))


def _describe(server: Server, entry: ModelMetadata) -> dict[str, Any]:
    if task_of_entry(entry) is None and "infer" not in server.rights:
        message = (
            f"The tensors of {entry.name!r} depend on its task. Its entry does not state one, so the model would have "
            "to be loaded, which the key does not permit.\nUse a key that may infer, or register the entry with: task=…"
        )
        raise ProblemError(Problem(403, "permission_denied", message, "model"))
    signature = signature_of(entry, server.runner(entry.reference).task)
    versions = server.registry.catalog.numbers(entry.name) if entry.origin == "stored" else [entry.version]
    return {
        "name": entry.name,
        "versions": [str(number) for number in versions],
        "platform": "medvllm",
        "inputs": [spec.to_dict() for spec in signature.inputs],
        "outputs": [spec.to_dict() for spec in signature.outputs],
    }


def _list(server: Server, *, only_ready: bool) -> list[dict[str, Any]]:
    present = {(model.name, model.version) for model in server.registry.loaded_models() if not model.evicted}
    found = []
    for name, entry in server.registry.list_models().items():
        is_present = (name, entry.version) in present
        if is_present or not only_ready:
            state, reason = ("READY", "") if is_present else ("UNAVAILABLE", "not in memory; a request loads it")
            found.append({"name": name, "version": str(entry.version), "state": state, "reason": reason})
    return found


def _check(asked: Inference, signature: Signature) -> None:
    """Raise ProblemError unless the request has the tensors of a task."""
    needed = [spec.name for spec in signature.inputs]
    check_names(list(asked.inputs), needed, "inputs")
    if missing := next((name for name in needed if name not in asked.inputs), None):
        raise invalid(f"Input {missing!r} is missing.", "inputs")
    check_names(list(asked.wanted), [spec.name for spec in signature.outputs], "outputs")


def _take_timeout(asked: Inference) -> tuple[float | None, dict[str, Any]]:
    """Return the seconds that a request allows, and the parameters that are options of the task."""
    options: dict[str, Any] = dict(asked.parameters)
    timeout = options.pop("timeout", 0)  # microseconds, as Triton has it
    options.pop("priority", None)  # it changes no answer
    if options.pop("sequence_id", 0) not in (0, ""):
        raise invalid("The server has no models with state, so sequence_id cannot be used.", "parameters")
    options.pop("sequence_start", None), options.pop("sequence_end", None)
    if type(timeout) is not int or timeout < 0:
        raise invalid("The parameter timeout must be a number of microseconds.", "parameters")
    if reserved := next((name for name in options if name in _RESERVED), None):
        raise invalid(f"The parameter {reserved} cannot be used.", "parameters")
    return timeout / 1e6 or None, options


def _accepts_gzip(header: str) -> bool:
    """Return whether a client accepts gzip, as its Accept-Encoding says."""
    for part in header.lower().split(","):
        coding, _, parameters = part.partition(";")
        if coding.strip() == "gzip":
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False

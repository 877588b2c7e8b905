"""`GET /memory`: which models are in memory, by device, and what is left of the budget."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from medvllm import settings
from medvllm.engines import check_engine
from medvllm.errors import MedVLLMError, ModelNotFoundError
from medvllm.model_cache.statistics import DeviceUse
from medvllm.model_registry import ModelRegistry
from medvllm.model_registry.loaded_models import LoadedModel
from medvllm.options import parse_keep_alive
from medvllm.processes.process import Process
from medvllm.quantities import LONGEST_S, PINNED
from medvllm.server.body import StrictRoute
from medvllm.server.context import Server, ServerOf
from medvllm.server.page.form import read_form
from medvllm.server.page.view import render_view

if TYPE_CHECKING:
    from medvllm.engines import EngineName

router = APIRouter(route_class=StrictRoute)

_SEE_OTHER = 303


class Resident(NamedTuple):
    """A model in memory."""

    model: LoadedModel
    reference: str | None  # the name that means it; None if it is no longer registered
    idle: str
    stays: str

    @property
    def is_pinned(self) -> bool:
        """Whether it stays."""
        return self.model.keep_alive == PINNED


class Other(NamedTuple):
    """A model of another process."""

    name: str
    program: str
    process: str
    model: Mapping[str, Any]
    idle: str


class Device(NamedTuple):
    """A device: its models, and the bytes in use."""

    name: str
    use: DeviceUse
    residents: list[Resident]

    @property
    def used_bytes(self) -> int:
        """The bytes that count against the budget."""
        return self.use.cached_bytes + self.use.held_bytes + self.use.reserved_bytes

    def share(self, size_bytes: int) -> float:
        """Return how much of the bar a size is, in percent: of the budget, or of what is in use if there is none."""
        return min(100 * size_bytes / max(self.use.budget_bytes or self.used_bytes, 1), 100)


@router.get("/memory")
async def show_memory(http: Request, server: ServerOf) -> Response:
    """Show the models in memory."""
    context = await server.look(http, lambda: _describe(server.registry))
    return render_view(http, "memory", "memory.html", **context)


@router.post("/memory/load")
async def load(http: Request, server: ServerOf) -> Response:
    """Load a model."""
    return await _change(http, server, lambda reference, engine: _load(server, reference, engine, None))


@router.post("/memory/unload")
async def unload(http: Request, server: ServerOf) -> Response:
    """Let a model leave memory once its last request is answered."""
    return await _change(http, server, lambda reference, _: server.registry.evict(reference), is_look=True)


@router.post("/memory/pin")
async def pin(http: Request, server: ServerOf) -> Response:
    """Keep a model in memory."""
    return await _change(http, server, lambda reference, engine: _load(server, reference, engine, -1))


@router.post("/memory/unpin")
async def unpin(http: Request, server: ServerOf) -> Response:
    """Let a model stay as long as its entry or the settings say, or else until its memory is needed."""

    def call(reference: str, engine: "EngineName | None") -> None:
        stated = server.entry(reference).memory.keep_alive
        usual = settings.KEEP_ALIVE() if stated is None else parse_keep_alive(stated)
        _load(server, reference, engine, LONGEST_S if usual in (None, PINNED) else usual)

    return await _change(http, server, call)


async def _change(
    http: Request, server: Server, change: "Callable[[str, EngineName | None], object]", *, is_look: bool = False
) -> Response:
    """Change something about the model that a form names, and show the memory, or the page that the form was on.

    A form beside a model in memory names its engine, too.
    """
    form = await read_form(http)

    def call() -> str:
        entry = server.entry(form.text("model"))
        change(entry.reference, check_engine(engine) if (engine := form.text("engine")) else None)
        return entry.name

    await (server.look if is_look else server.run)(http, call)  # it may run while the server is full
    return RedirectResponse("/memory", _SEE_OTHER)


def _load(server: Server, reference: str, engine: "EngineName | None", keep_alive: float | None) -> None:
    with server.lease(reference, engine, keep_alive=keep_alive):
        pass


def _describe(registry: ModelRegistry) -> dict[str, Any]:
    now, statistics = time.time(), registry.statistics()
    residents: dict[str, list[Resident]] = {name: [] for name in statistics.devices}
    for model in registry.loaded_models():
        resident = Resident(model, _reference(registry, model), _duration(max(now - model.last_used, 0)), _stays(model))
        residents.setdefault(model.device, []).append(resident)
    nothing = DeviceUse(0, 0, 0, None)
    devices = [Device(name, statistics.devices.get(name, nothing), found) for name, found in residents.items()]
    return {"devices": devices, "statistics": statistics, "others": _others(registry, now)}


def _others(registry: ModelRegistry, now: float) -> list[Other] | None:
    """Return the models of other processes, as `medvllm ps` lists them; None if their records cannot be read."""
    try:
        records = registry.list_processes()
    except MedVLLMError:
        return None
    own = Process.current()
    return [
        Other(
            "a folder" if model["origin"] == "direct" else model["name"],  # its name may be a path
            record.program,
            str(record.process),
            model,
            _duration(max(now - model["last_used"], 0)),
        )
        for record in records
        if record.process != own
        for model in record.models
    ]


def _duration(seconds: float) -> str:
    """Return a duration in its largest unit."""
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    return next((f"{seconds // size:,.0f} {unit}" for size, unit in units if seconds >= size), f"{seconds:.0f} s")


def _reference(registry: ModelRegistry, model: LoadedModel) -> str | None:
    """Return the name that means a model in memory. A model without an entry is no model of the server."""
    for name in () if model.origin == "direct" else (model.name, f"{model.name}@{model.version}"):
        with suppress(ModelNotFoundError):
            if registry.get_metadata(name).version == model.version:
                return name
    return None


def _stays(model: LoadedModel) -> str:
    if model.evicted:
        return "until its last request is answered"
    if model.keep_alive is None or LONGEST_S <= model.keep_alive < PINNED:
        return "until its memory is needed"
    return "pinned" if model.keep_alive == PINNED else f"{_duration(model.keep_alive)} after its last use"

"""Whether a server lives, and whether it can answer: `GET /livez` and `GET /readyz`."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from medvllm.server.context import ServerOf
from medvllm.server.examples import answer_of

if TYPE_CHECKING:
    from medvllm.model_registry import ModelRegistry

router = APIRouter(tags=["Operation"])


@router.get("/livez", responses={200: answer_of({"status": "ok"})})
async def is_live() -> dict[str, Any]:
    """Answer with 200 while the process runs. It needs no key."""
    return {"status": "ok"}


@router.get("/readyz", responses={200: answer_of({"status": "ok"})})
async def is_ready(http: Request, server: ServerOf) -> dict[str, Any]:
    """Answer with 200 while the catalogue can be read. It needs no key."""
    await server.look(http, lambda: check_ready(server.registry))
    return {"status": "ok"}


def check_ready(registry: "ModelRegistry") -> None:
    """Raise CatalogError if the catalogue cannot be read."""
    registry.catalog.is_there()
    registry.catalog.position()

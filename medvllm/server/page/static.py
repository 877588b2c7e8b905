"""`GET /static/…`: the files that the pages link to."""

from fastapi import APIRouter
from fastapi.responses import Response

from medvllm.server.assets import assets
from medvllm.server.problem import Problem, ProblemError

router = APIRouter()

# Their addresses change with them.
_HEADERS = {"Cache-Control": "private, max-age=31536000, immutable"}


@router.get("/static/{name}")
def get_asset(name: str) -> Response:
    """Return a file."""
    if (asset := assets().get(name)) is None:
        raise ProblemError(Problem(404, "not_found", "There is no such file."))
    return Response(asset.content, media_type=asset.kind, headers=_HEADERS)


@router.get("/favicon.ico")
def get_icon() -> Response:
    """Return the icon, where browsers look for it."""
    return get_asset("icon.svg")

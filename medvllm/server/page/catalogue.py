"""`GET /`: the entries of the catalogue, with filters and a search, page by page."""

from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from medvllm.local_files import LocalFiles, local_files
from medvllm.metadata import ModelMetadata
from medvllm.model_registry import ModelRegistry
from medvllm.model_type import ModelType
from medvllm.server.context import ServerOf
from medvllm.server.page.view import render_view
from medvllm.words import TASKS

router = APIRouter()

_PAGE = 40
_MINE = "[!b]*"  # every origin but "built-in"
_GLOB = frozenset("*?[")


class Filters(NamedTuple):
    """What the visitor asked for. Empty texts ask for nothing."""

    q: str = ""
    type: str = ""
    task: str = ""
    tag: str = ""
    license: str = ""
    here: bool = False
    mine: bool = False


class Row(NamedTuple):
    """An entry of the list, where its files are, and whether it is in memory."""

    entry: ModelMetadata
    files: LocalFiles | None
    is_loaded: bool


@router.get("/")
async def show_catalogue(
    http: Request,
    server: ServerOf,
    q: Annotated[str, Query(max_length=200)] = "",
    type: Annotated[str, Query(max_length=200)] = "",
    task: Annotated[str, Query(max_length=200)] = "",
    tag: Annotated[str, Query(max_length=200)] = "",
    license: Annotated[str, Query(max_length=200)] = "",
    here: bool = False,
    mine: bool = False,
    after: Annotated[str, Query(max_length=500)] = "",
) -> HTMLResponse:
    """Show the entries that fit all filters, sorted by name."""
    filters = Filters(q.strip(), type, task, tag.strip(), license.strip(), here, mine)

    rows = await server.look(http, lambda: _find(server.registry, filters, after or None))
    is_last = len(rows) <= _PAGE
    asked = {name: value if isinstance(value, str) else "true" for name, value in filters._asdict().items() if value}
    return render_view(
        http,
        "catalogue",
        "catalogue.html",
        filters=filters,
        asked=asked,
        after=after,
        rows=rows[:_PAGE],
        next_after=None if is_last else rows[_PAGE - 1].entry.name,
        types=[str(kind) for kind in ModelType],
        tasks=TASKS,
    )


def _find(registry: ModelRegistry, filters: Filters, after: str | None) -> list[Row]:
    """Return the entries behind a name that fit all filters: those of a page, and one more if there is one."""
    loaded = {each.name for each in registry.loaded_models() if not each.evicted}
    facts: dict[str, Any] = {"origin": _MINE} if filters.mine else {}
    if filters.license:
        is_glob = not _GLOB.isdisjoint(filters.license)
        facts["license"] = filters.license if is_glob else f"*{filters.license}*"
    found = registry.list_models(
        filters.type or None,
        task=filters.task or None,
        tags=filters.tag or (),
        search=filters.q or None,
        limit=_PAGE + 1,
        after=after,
        here=filters.here,
        **facts,
    )
    return [Row(entry, local_files(entry), name in loaded) for name, entry in found.items()]

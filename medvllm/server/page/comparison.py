"""`GET /diff`: what differs between two entries, or two versions of one."""

from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from medvllm.catalog.difference import Difference
from medvllm.one_line import one_line
from medvllm.server.context import ServerOf
from medvllm.server.page.view import render_view
from medvllm.server.receipts import hide_paths

router = APIRouter()

_Name = Annotated[str, Query(max_length=500)]


class Row(NamedTuple):
    """A fact or a file that differs, with both values in words; None for no value."""

    what: str
    before: str | None
    after: str | None


@router.get("/diff")
async def show_differences(http: Request, server: ServerOf, before: _Name = "", after: _Name = "") -> HTMLResponse:
    """Show what differs between two entries, such as "ner@1" and "ner@2"."""

    def call() -> tuple[str, list[Row]]:
        first, second = server.entry(before), server.entry(after)
        found = server.registry.diff(first.reference, second.reference)
        return second.name, [_row(each) for each in found]

    name, rows = await server.look(http, call)
    return render_view(http, "catalogue", "diff.html", name=name, before=before, after=after, rows=rows)


def _row(difference: Difference) -> Row:
    shown: dict[str, Any] = hide_paths(difference.to_dict())
    return Row(difference.what, *(_in_words(difference.what, shown[side]) for side in ("before", "after")))


def _in_words(what: str, value: Any) -> str | None:
    if value in (None, "", [], {}):
        return None
    if what == "baseline":
        return f"{len(value)} case{'' if len(value) == 1 else 's'}"
    return str(one_line(value, ", "))

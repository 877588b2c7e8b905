"""What every view of the page shows: the place in the navigation, and what the visitor may do."""

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

from medvllm.server.html import render_page


def render_view(
    http: Request,
    view: str,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """Return a view.

    Args:
        http: The request.
        view: The item of the navigation that is the current one.
        template: The name of the template.
        status: The status of the answer.
        headers: Further headers.
        **context: What the template shows.
    """
    common = {"view": view, "key": http.state.key, "rights": http.state.rights}
    return render_page(template, status=status, headers=headers, **common, **context)

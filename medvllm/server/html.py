"""Answers in HTML: the templates of the page, and the headers that go with them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from medvllm import __version__
from medvllm.quantities import shown_size
from medvllm.server.assets import address_of
from medvllm.server.problem import Problem

# No style and no script but the server's own files. Forms state where they come from (same-origin), or the guard
# would refuse them.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
}
_VIEWS = frozenset(("", "entry", "diff", "memory", "try"))
_TITLES = {
    401: "A key is needed",
    403: "Not allowed",
    404: "Not found",
    422: "Not possible",
    429: "The server is busy",
    503: "Not at the moment",
}


def is_page(path: str) -> bool:
    """Return whether a path is one that people open in a browser."""
    return path[1:].partition("/")[0] in _VIEWS


def render_page(
    template: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **context: Any
) -> HTMLResponse:
    """Return a page.

    Args:
        template: The name of the template.
        status: The status of the answer.
        headers: Further headers.
        **context: What the template shows. All of it is escaped.
    """
    content = _environment().get_template(template).render(context)
    return HTMLResponse(content, status, {**_HEADERS, **(headers or {})})


def render_problem(problem: Problem) -> HTMLResponse:
    """Return the page of a problem."""
    title = _TITLES.get(problem.status, "Something is wrong")
    return render_page(
        "problem.html", status=problem.status, headers=problem.headers(), view="", problem=problem, title=title
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("medvllm.server", "page/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters["size"] = shown_size
    made.globals |= {"asset": address_of, "version": __version__}
    return made

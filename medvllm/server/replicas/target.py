"""Which model a request is for, as the protocols say it: the replicas that have it are asked first."""

import asyncio
import re
from dataclasses import replace
from urllib.parse import unquote

from starlette.exceptions import HTTPException

from medvllm.errors import MedVLLMError
from medvllm.server.body import StrictRequest
from medvllm.server.context import Server
from medvllm.server.html import is_page
from medvllm.server.page.form import read_form

_IN_PATH = re.compile(
    r"/v2/models/(?P<numbered>.+)/versions/(?P<version>[^/]+)(?:/infer|/ready)?"
    r"|/v2/(?:repository/)?models/(?P<open>.+?)(?:/infer|/ready|/load|/unload)?"
    r"|/v1/models/(?P<listed>.+)"
    r"|/models/(?P<hub>.+?)(?:/pipeline/[^/]+)?",
    re.DOTALL,
)


async def find_model(http: StrictRequest, server: Server) -> str:
    """Return the name of the version that a request is for; an empty text if it names none, or one that is unknown.

    Any replica can answer any request. So what is wrong with a request is left to the one that answers it.

    Args:
        http: The request.
        server: Its catalogue has the models.
    """
    try:
        name = named_in(http.url.path) or await _named_in_body(http) or _named_beside(http, server.config.loaded)
        return "" if name is None else await asyncio.to_thread(_reference, server, name)
    except (MedVLLMError, HTTPException):
        return ""


def named_in(path: str) -> str | None:
    """Return the name in a path, such as "ner@3" in "/v2/models/ner/versions/3/infer"; None if there is none."""
    if (found := _IN_PATH.fullmatch(path)) is None:
        return None
    if numbered := found["numbered"]:
        return f"{numbered}@{unquote(found['version'])}"
    return found["open"] or found["listed"] or found["hub"]


async def _named_in_body(http: StrictRequest) -> str | None:
    if not await http.body():
        return None
    content = {"model": (await read_form(http)).text("model")} if is_page(http.url.path) else await http.json()
    name = content.get("model") if isinstance(content, dict) else None
    return name if isinstance(name, str) and name else None


def _named_beside(http: StrictRequest, loaded: tuple[str, ...]) -> str | None:
    named = http.query_params.get("model") or http.headers.get("x-medvllm-model")
    return named or (loaded[0] if len(loaded) == 1 else None)


def _reference(server: Server, name: str) -> str:
    return replace(server, about={}).entry(name).reference

"""A page that is sent while its answer is made: browsers show each piece as it comes, without a script."""

import json
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, StreamingResponse
from markupsafe import escape

from medvllm.server.context import Server
from medvllm.server.page.actions import Action
from medvllm.server.served_runner import VERSION

_LENGTH = "content-length"


async def stream_answer(
    action: Action, body: Mapping[str, Any], http: Request, server: Server, show: Callable[..., HTMLResponse]
) -> StreamingResponse:
    """Return a page in which the answer to a request of a decoder appears piece by piece.

    Args:
        action: What is asked.
        body: The request.
        http: The request of the browser.
        server: The server.
        show: Returns the page for a `result`.

    Raises:
        ValidationError: The body does not fit the route.
        ProblemError, MedVLLMError: The first piece cannot be made.
    """
    more = {"stream": True, "stream_options": {"include_usage": True}}
    answer = await action.ask({**body, **more}, http, server)
    place = uuid.uuid4().hex  # where the pieces go
    shown: dict[str, Any] = {"text": place, "status": "Answer", "problem": None}
    shown |= {"version": server.about.get(VERSION), "ending": "", "is_partly_read": False}
    begun = show(result=shown)
    headers = {name: value for name, value in begun.headers.items() if name != _LENGTH}

    async def parts() -> AsyncGenerator[str]:
        yield bytes(begun.body).decode().partition(place)[0]
        is_cut = False
        async with aclosing(_records(answer)) as records:
            async for record in records:
                if "error" in record:
                    shown["problem"] = record["error"]["message"]
                    break
                yield str(escape(_piece_of(record)))
                for choice in record["choices"]:
                    is_cut = choice["finish_reason"] == "length" or is_cut
                    shown["is_partly_read"] |= "coverage" in choice
                if record.get("usage"):
                    shown["ending"] = _ending_of(record["usage"]["completion_tokens"], is_cut=is_cut)
        yield bytes(show(result=shown).body).decode().partition(place)[2]

    return StreamingResponse(parts(), headers=headers)


async def _records(answer: StreamingResponse) -> AsyncGenerator[dict[str, Any]]:
    """Yield the events of an answer of OpenAI's API."""
    async for event in answer.body_iterator:
        content = str(event).removeprefix("data: ").strip()
        if content != "[DONE]":
            yield json.loads(content)


def _piece_of(record: Mapping[str, Any]) -> str:
    for choice in record["choices"]:
        return str(choice.get("text") or choice.get("delta", {}).get("content") or "")
    return ""


def _ending_of(tokens: int, *, is_cut: bool) -> str:
    """Return how long an answer is, and whether it would be longer."""
    said = f"{tokens:,} {'token' if tokens == 1 else 'tokens'}."
    return f"{said} The answer stops there because no more were asked for." if is_cut else said

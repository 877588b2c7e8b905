"""Answers that are sent piece by piece, while they are made."""

import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from medvllm.server.problem import describe_failure, problem_for
from medvllm.server.rendering import content_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not keep pieces back


async def stream_text(parts: AsyncGenerator[str], kind: str) -> StreamingResponse:
    """Return an answer of a media type, which is sent part by part.

    Raises:
        MedVLLMError: The first part cannot be made. If a later one cannot, the answer breaks off.
    """
    return StreamingResponse(await _begin(parts), media_type=kind, headers=_HEADERS)


async def stream_events(
    http: Request, items: AsyncGenerator[T], describe: Callable[[T | None], Iterable[dict[str, Any]]]
) -> StreamingResponse:
    """Return an answer of server-sent events, as OpenAI sends them: the last one is [DONE].

    An error after the first item is an event, too, and the last one.

    Args:
        http: The request.
        items: What is sent.
        describe: Returns the events of an item, and with None those at the end.

    Raises:
        MedVLLMError: The first item cannot be made.
    """
    begun = await _begin(items)

    async def events() -> AsyncGenerator[str]:
        try:
            async with aclosing(begun):
                async for item in begun:
                    for content in describe(item):
                        yield _event(content)
        except Exception as error:
            logger.error("request %s broke off: %s", http.state.about["request_id"], describe_failure(error))
            yield _event(content_of(problem_for(http, error), http.url.path))
            return
        for content in describe(None):
            yield _event(content)
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers=_HEADERS)


async def _begin(items: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """Return items whose first one is there: until then, an error can still decide the status of the answer."""
    try:
        first = await anext(items)
    except StopAsyncIteration:
        return items

    async def all_items() -> AsyncGenerator[T]:
        async with aclosing(items):
            yield first
            async for item in items:
                yield item

    return all_items()


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, allow_nan=False)}\n\n"

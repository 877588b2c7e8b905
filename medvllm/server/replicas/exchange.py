"""A request that was read elsewhere: the application answers it, and a generator yields what it sends."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from medvllm.server.journal import route_of

# Bytes. Ray keeps what is larger than 100 KiB in its object store, where others could read it.
PIECE = 64 * 1024
_ENOUGH = 16 * 1024  # of messages that are yielded together: with one more piece, they are still smaller


class Exchange:
    """A request and its answer.

    Args:
        app: What answers.
        scope: The request, as ASGI has it.
        body: Its body.
    """

    def __init__(self, app: ASGIApp, scope: Scope, body: bytes) -> None:
        self._app, self._scope = app, scope
        self._body: bytes | None = body  # None once it was read
        self._is_over = asyncio.Event()
        self._sent: asyncio.Queue[Message | None] = asyncio.Queue()

    async def messages(self) -> AsyncGenerator[list[Message]]:
        """Yield the messages of the answer, short ones that are there together. The first says what the log may say.

        If nobody waits for more of them, the application is told that its client has gone, and is waited for.
        """
        running = asyncio.create_task(self._answer())
        try:
            is_complete = False
            while not is_complete:
                found = [await self._sent.get()]
                while not self._sent.empty() and sum(map(_size, found)) < _ENOUGH:
                    found.append(self._sent.get_nowait())
                is_complete = found[-1] is None
                if present := [message for message in found if message is not None]:
                    yield present
        finally:
            self._is_over.set()
            await asyncio.wait((running,))

    async def _answer(self) -> None:
        try:
            with suppress(ConnectionAbortedError):  # the answer was cut off: its last message is missing
                await self._app(self._scope, self._receive, self._send)
        finally:
            self._sent.put_nowait(None)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._is_over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            known: dict[str, Any] = {"about": dict(self._scope["state"]["about"]), "route": route_of(self._scope)}
            self._sent.put_nowait({**message, "known": known})
            return
        parts = pieces(message.get("body", b""))
        for number, part in enumerate(parts, 1):
            is_last = number == len(parts)
            more = not is_last or message.get("more_body", False)
            self._sent.put_nowait({"type": message["type"], "body": part, "more_body": more})


def _size(message: Message | None) -> int:
    return 0 if message is None else len(message.get("body", b""))


def pieces(data: bytes) -> list[bytes]:
    """Return bytes in pieces that Ray passes on without its object store; of nothing, one empty piece."""
    return [data[start : start + PIECE] for start in range(0, len(data), PIECE)] or [b""]

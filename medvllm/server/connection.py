"""Connections of a server: HTTP/1.1, with limits on how long a client may take, and on how many there are."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 60.0  # without a byte of the answer that the client reads
MAX_CONNECTIONS = 800  # a process may usually have 1,024 files open
_LINGER_S = 1.0  # for a client to read its answer, before a connection is closed on which it still sends


class Connection(H11Protocol):
    """A connection that is closed unless the head of a request arrives in time.

    uvicorn itself waits for it without limit: a client that sends a byte from time to time would keep its connection.
    It also waits for a client that does not read its answer, and accepts connections until the process cannot open
    files any more. Here, the one that has waited longest for a request gives way to a new one.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    _head_timer: asyncio.TimerHandle | None = None
    stall_timeout_s = STALL_TIMEOUT_S
    _stall_timer: asyncio.TimerHandle | None = None
    max_connections = MAX_CONNECTIONS
    _idle_since: float | None = None  # on the loop's clock; None while there is a request
    _is_over = False  # whether nothing that arrives is read any more
    _is_half_closed = False  # whether the client has said that it sends no more, and waits for its answers

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.access_log = False  # uvicorn's own one has paths and queries, in which there may be texts

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(cast(asyncio.Transport, _Closing(transport, self._close)))
        self._watch_head()
        if len(self.connections) > self.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._is_over:
            return
        super().data_received(data)
        self._watch_head()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a client that waits for what it has asked for with GET, such as a check by netcat.

        A client that has sent a text, and then ends its side of the connection, is taken to be gone: a program that was
        killed looks the same, and its call shall end.
        """
        cycle = cast(Any, self.cycle)
        has_request = cycle is not None and not cycle.response_complete and self.conn.their_state is not h11.SEND_BODY
        is_kept = (
            has_request and self.scope["method"] in ("GET", "HEAD") and self.scheme == "http" and not self._is_over
        )
        self._is_half_closed = is_kept
        return is_kept

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, part of which may be here."""
        super().on_response_complete()
        self._watch_head()
        if self._is_half_closed and self._idle_since is not None:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not read."""
        super().pause_writing()
        self._watch_unsent()

    def resume_writing(self) -> None:
        """Go on."""
        self._stop_stall_timer()
        super().resume_writing()

    def _make_room(self) -> None:
        present = [each for each in cast("set[Connection]", self.connections) if not each.transport.is_closing()]
        if len(present) > self.max_connections:
            idle = [each for each in present if each._idle_since is not None]
            min(idle, key=lambda each: each._idle_since or 0.0).transport.abort()  # this one, if all others are busy

    def _close(self, transport: asyncio.Transport) -> None:
        """Close the connection, once what was written is sent.

        While the client still sends, that would be a reset, which can destroy the answer on its way. So first the
        client is told that there is no more, and what it sends is dropped for a moment.
        """
        is_sending = self.conn.their_state in (h11.SEND_BODY, h11.ERROR) or bool(self.conn.trailing_data[0])
        if not is_sending or transport.is_closing():
            transport.close()
            return
        self._is_over = True
        transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        self._stop_timer()
        self._head_timer = self.loop.call_later(_LINGER_S, transport.close)

    def _watch_unsent(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._stall_timer = self.loop.call_later(self.stall_timeout_s, self._check_unsent, unsent)

    def _check_unsent(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._watch_unsent()
        else:
            self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _watch_head(self) -> None:
        cycle = cast(Any, self.cycle)
        if self.transport.is_closing():
            return
        if cycle is not None and not cycle.response_complete:
            self._idle_since = None
            self._stop_timer()
            return
        if self._idle_since is None:
            self._idle_since = self.loop.time()
        # Between two requests, uvicorn's own timer ends the connection, until the next one begins.
        if self._head_timer is None and (cycle is None or self.conn.trailing_data[0]):
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._end_waiting)

    def _end_waiting(self) -> None:
        self._head_timer = None
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Closing:
    """A transport whose `close` calls a function, once. All else is done by the transport itself."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[asyncio.Transport], None]) -> None:
        self._transport, self._close, self._is_closing = transport, close, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close it."""
        if not self._is_closing:
            self._is_closing = True
            self._close(self._transport)

    def is_closing(self) -> bool:
        """Return whether it is closed, or about to be."""
        return self._is_closing or self._transport.is_closing()

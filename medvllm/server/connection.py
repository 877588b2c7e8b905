"""Connections of a server: HTTP/1.1, with limits on how long a client may take."""

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0
STALL_TIMEOUT_S = 60.0  # without a byte of the answer that the client reads
_LINGER_S = 1.0  # for a client to read why its body is not read, before the connection is closed


class Connection(H11Protocol):
    """A connection that is closed unless the head of a request arrives in time.

    uvicorn itself waits for it without limit: a client that sends a byte from time to time would keep its connection.
    It also reads the rest of a body of which no more is wanted, and waits for a client that does not read its answer.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    _head_timer: asyncio.TimerHandle | None = None
    stall_timeout_s = STALL_TIMEOUT_S
    _stall_timer: asyncio.TimerHandle | None = None
    _is_over = False  # whether nothing that arrives is read any more

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.access_log = False  # uvicorn's own one has paths and queries, in which there may be texts

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._is_over:
            return
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, part of which may be here; or end, if the body was not read."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self._is_over = True
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._stop_timer()
            self._head_timer = self.loop.call_later(_LINGER_S, self._end_waiting)
            return
        self._watch_head()

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
        if cycle is not None and not cycle.response_complete:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self._end_waiting)

    def _end_waiting(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

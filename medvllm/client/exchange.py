"""One call with its requests: when it is sent again, what its errors are, and how its answer is read."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from medvllm.client import faults
from medvllm.client.answers import read_piece
from medvllm.client.call import Call
from medvllm.client.connection import LostError, Request
from medvllm.errors import MedVLLMError

if TYPE_CHECKING:
    from medvllm.engine.model_runner.generation.answers import Piece

T = TypeVar("T")

_EVENT = b"data: "
_LAST = b"[DONE]"
_NOTHING: Any = object()
_GRACE_S = 5.0  # in which the server may still say that it is late


class Exchange(Generic[T]):
    """What clients that wait and clients that do not have in common. It sends nothing itself.

    Args:
        url: The address of the server.
        call: The call.
        timeout_s: Seconds for it, unless the call says otherwise.

    Attributes:
        wait_s: The seconds after which the request is to be sent again; None if it is not.
    """

    def __init__(self, url: str, call: Call[T], timeout_s: float) -> None:
        self._url, self._call = url, call
        self._timeout_s = timeout_s if call.timeout_s is None else call.timeout_s
        self._deadline = time.monotonic() + self._timeout_s
        self._end = self._deadline + min(self._timeout_s, _GRACE_S)
        self._line = b""  # of a stream, as far as it is here
        self._has_begun = False  # whether the head of the answer is here
        self._tries = self._hang_ups = 0
        self._is_complete = False
        self.wait_s: float | None = None

    def request(self) -> Request:
        """Return the next request. DeadlineError: the time is over."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise faults.too_late(self._timeout_s)
        self._tries += 1
        self._has_begun = False
        return Request(self._call.method, self._call.path, self._call.body(left_s), left_s)

    def failure(self, lost: LostError) -> MedVLLMError | None:
        """Return the error of the library for a request that got no whole answer.

        None means that the request is to be sent again: a server may end a connection between two requests, and the
        client notices it too late.
        """
        if lost.why == "hung up" and not self._has_begun and not self._hang_ups:
            self._hang_ups, self.wait_s = 1, 0.0
            return None
        if lost.why in ("silent", "unreachable"):
            return faults.not_reached(self._url, lost.reason or "it does not answer")
        if lost.why == "too late":
            return faults.too_late(self._timeout_s)
        return faults.broken_off(self._url) if self._has_begun else faults.hung_up(self._url)

    def begin(self) -> None:
        """Note that the head of an answer is here."""
        self._has_begun = True

    def check_time(self) -> None:
        """Raise DeadlineError if an answer is still arriving when the time is over, however little comes at a time."""
        if time.monotonic() > self._end:
            raise faults.too_late(self._timeout_s)

    def in_time(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the parts of the body of an answer whose head is here. DeadlineError: the time is over."""
        self.begin()
        for part in parts:
            self.check_time()
            yield part

    def judge(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Set `wait_s` for an answer. If it is an error, and does not help to ask again, raise it."""
        self.wait_s = None
        if status == 200:
            return
        self.wait_s = faults.wait_s(status, headers, self._tries, self._deadline - time.monotonic())
        if self.wait_s is None:
            raise faults.error_of(status, headers, body, self._url)

    def read(self, body: bytes) -> T:
        """Return the result that a good answer has."""
        content = _NOTHING
        try:
            content = json.loads(body)
            return self._call.read(content)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass  # the error may have a part of the answer
        raise faults.error_of(200, {}, b"", self._url) if content is _NOTHING else faults.unknown_form(self._url)

    def read_part(self, part: bytes) -> "Iterator[Piece]":
        """Yield the pieces that a part of a stream completes, or raise the error that it has."""
        *lines, self._line = (self._line + part).split(b"\n")
        for line in lines:
            if (piece := self._read_line(line.rstrip(b"\r"))) is not None:
                yield piece

    def _read_line(self, line: bytes) -> "Piece | None":
        if not line.startswith(_EVENT):
            return None
        if line == _EVENT + _LAST:
            self._is_complete = True
            return None
        content = _NOTHING
        try:
            content = json.loads(line.removeprefix(_EVENT))
            if (error := content.get("error")) is None:
                return read_piece(content)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            error = None
        if isinstance(error, dict):
            raise faults.error_in(error, self._url)
        raise faults.broken_off(self._url) if content is _NOTHING else faults.unknown_form(self._url)

    def check_complete(self) -> None:
        """Raise ServerError if a stream ended before its last event."""
        if not self._is_complete:
            raise faults.broken_off(self._url)

"""One call with its requests: when it is sent again, what its errors are, and how its answer is read."""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from medvllm.client import faults
from medvllm.client.answers import read_piece
from medvllm.client.call import Call
from medvllm.client.connection import LostError, Request
from medvllm.errors import MedVLLMError

if TYPE_CHECKING:
    from medvllm.engine.model_runner.generation.answers import Piece

T = TypeVar("T")

_EVENT = "data: "
_LAST = "[DONE]"


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
        self._tries = self._hang_ups = 0
        self._is_complete = False
        self.wait_s: float | None = None

    def request(self) -> Request:
        """Return the next request. DeadlineError: the time is over."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise faults.too_late(self._timeout_s)
        self._tries += 1
        return Request(self._call.method, self._call.path, self._call.body(left_s), left_s)

    def failure(self, lost: LostError) -> MedVLLMError | None:
        """Return the error of the library for a request that got no whole answer.

        None means that the request is to be sent again: a server may end a connection between two requests, and the
        client notices it too late.
        """
        if lost.why == "hung up" and not self._hang_ups:
            self._hang_ups, self.wait_s = 1, 0.0
            return None
        if lost.why in ("silent", "unreachable"):
            return faults.not_reached(self._url, lost.reason or "it does not answer")
        return faults.too_late(self._timeout_s) if lost.why == "too late" else faults.broken_off(self._url)

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
        try:
            return self._call.read(json.loads(body))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass  # the error may have a part of the answer
        raise faults.error_of(200, {}, b"", self._url)

    def read_line(self, line: str) -> "Piece | None":
        """Return the piece that a line of a stream has, if any, or raise the error that it has."""
        if not line.startswith(_EVENT):
            return None
        if line == _EVENT + _LAST:
            self._is_complete = True
            return None
        try:
            content = json.loads(line.removeprefix(_EVENT))
            error = content.get("error")
            if error is None:
                return read_piece(content)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            error = None
        if isinstance(error, dict):
            raise faults.error_in(error, self._url)
        raise faults.broken_off(self._url)

    def check_complete(self) -> None:
        """Raise ServerError if a stream ended before its last event."""
        if not self._is_complete:
            raise faults.broken_off(self._url)

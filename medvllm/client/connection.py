"""What a client needs of its connections to a server, whichever library makes them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

# How a request got no whole answer. "hung up": the connection has ended. If nothing of the answer is here, the server
# may have ended it before it read the request.
Why = Literal["hung up", "silent", "unreachable", "too late", "broken off"]


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        method: The HTTP method.
        path: The path.
        content: The body; None for none.
        left_s: The seconds that are left for the call.
    """

    method: str
    path: str
    content: bytes | None = field(repr=False)
    left_s: float


class LostError(Exception):
    """A request got no whole answer. It has neither a cause nor a context: those of a library have the request.

    Attributes:
        why: What happened.
        reason: What the system says, for a server that is unreachable.
    """

    def __init__(self, why: Why, reason: str = "") -> None:
        super().__init__(why)
        self.why, self.reason = why, reason


class Answer(Protocol):
    """An answer, whose body may not have come yet."""

    status: int
    headers: Mapping[str, str]

    def parts(self) -> Iterator[bytes]:
        """Yield the parts of the body as they come. LostError: it is not complete."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class Connection(Protocol):
    """Connections to one server."""

    headers: dict[str, str]

    def send(self, request: Request) -> Answer:
        """Send a request, and return its answer once its head is there. LostError: there is none."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...

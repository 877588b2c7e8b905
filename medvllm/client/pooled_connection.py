"""Connections by httpx: to any server, by TLS and proxies, for several threads."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from medvllm.client.connection import LostError, Request

if TYPE_CHECKING:
    import httpx2

CONNECT_S = 5.0
_HUNG_UP = "without sending a response"  # as httpx says it


class PooledConnection:
    """Connections to one server, which threads may share.

    Args:
        options: The options of an HTTP client, as `http_options` returns them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        import httpx2

        self.headers: dict[str, str] = dict(options["headers"])
        self._http = httpx2.Client(**{**options, "headers": {}})

    def send(self, request: Request) -> "_Answer":
        """Send a request, and return its answer once its head is there."""
        import httpx2

        made = self._http.build_request(
            request.method,
            request.path,
            content=request.content,
            headers=self.headers,
            timeout=timeout_of(request.left_s),
        )
        try:
            return _Answer(self._http.send(made, stream=True))
        except httpx2.HTTPError as error:
            lost = lost_by(error)
        raise lost

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


class _Answer:
    def __init__(self, response: "httpx2.Response") -> None:
        self._response = response
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers

    def parts(self) -> Iterator[bytes]:
        import httpx2

        parts = self._response.iter_bytes()
        while True:
            try:
                part = next(parts, None)
            except httpx2.HTTPError as error:
                lost = lost_by(error)
                break
            if part is None:
                return
            yield part
        raise lost

    def close(self) -> None:
        self._response.close()


def timeout_of(left_s: float) -> "httpx2.Timeout":
    """Return how long to wait for each step of a request. The server answers in time, if only that it is late."""
    import httpx2

    return httpx2.Timeout(left_s + min(left_s, CONNECT_S), connect=min(left_s, CONNECT_S))


def lost_by(error: "httpx2.HTTPError") -> LostError:
    """Return what an error of httpx means. It does not keep the error, which has the whole request."""
    import httpx2

    is_silent = isinstance(error, httpx2.RemoteProtocolError) and _HUNG_UP in str(error)
    if is_silent or isinstance(error, httpx2.ReadError | httpx2.WriteError):
        return LostError("hung up")
    if isinstance(error, httpx2.ConnectTimeout):
        return LostError("silent")
    if isinstance(error, httpx2.ConnectError | httpx2.UnsupportedProtocol | httpx2.ProxyError):
        return LostError("unreachable", str(error))
    return LostError("too late" if isinstance(error, httpx2.TimeoutException) else "broken off")

"""A connection by Python's own HTTP: to a server on this machine, for commands, which import httpx for longer."""

import http.client
from collections.abc import Iterator, Mapping
from socket import socket
from typing import Any, cast
from urllib.parse import urlsplit

from medvllm.client.connection import Answer, LostError, Request

_CONNECT_S = 5.0
_PART = 65536  # bytes that are read at once


class LocalConnection:
    """A connection to a server without TLS on this machine, for one thread.

    Args:
        options: The options of an HTTP client, as `http_options` returns them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.headers: dict[str, str] = dict(options["headers"])
        url = urlsplit(options["base_url"])
        self._prefix = url.path.rstrip("/")
        self._http = http.client.HTTPConnection(url.hostname or "", url.port)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known. Otherwise, the next request opens one."""
        return self._http.sock is not None

    def send(self, request: Request) -> Answer:
        """Send a request, and return its answer once its head is there."""
        return self._ask(request, self.headers)

    def _ask(self, request: Request, headers: Mapping[str, str]) -> Answer:
        self._connect(request.left_s)
        try:
            self._http.request(request.method, self._prefix + request.path, request.content, headers)
            return _Answer(self._http.getresponse(), self._http)
        except (http.client.HTTPException, OSError) as error:
            lost = _lost_by(error)
        self._http.close()
        raise lost

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _connect(self, left_s: float) -> None:
        shortest = min(left_s, _CONNECT_S)
        try:
            if self._http.sock is None:
                self._http.timeout = shortest
                self._http.connect()
            # The server answers in time, if only that it is late.
            cast(socket, self._http.sock).settimeout(left_s + shortest)
            return
        except TimeoutError:
            lost = LostError("silent")
        except OSError as error:
            lost = LostError("unreachable", str(error))
        raise lost


class _Answer:
    def __init__(self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection) -> None:
        self._response, self._connection = response, connection
        self.status: int = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}

    def parts(self) -> Iterator[bytes]:
        while True:
            try:
                part = self._response.read1(_PART)
            except (http.client.HTTPException, OSError) as error:
                lost = _lost_by(error)
                break
            if not part:
                if not self._response.length:
                    self._response.read()  # Python 3.11 notices the end only here, and the connection can be used again
                    return
                lost = LostError("broken off")
                break
            yield part
        raise lost

    def close(self) -> None:
        if not self._response.isclosed():  # the server sees that nobody reads the rest
            self._connection.close()
        self._response.close()


def _lost_by(error: Exception) -> LostError:
    if isinstance(error, ConnectionError):  # also on sending a body: the head still seemed to be sent
        return LostError("hung up")
    return LostError("too late" if isinstance(error, TimeoutError) else "broken off")

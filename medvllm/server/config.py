"""How a server is set up."""

from dataclasses import dataclass

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServerConfig:
    """The limits of a server.

    Attributes:
        max_body_bytes: The largest body of a request, also after decompression.
        max_texts: The most texts of one request.
        max_characters: The most characters of all texts of one request.
        max_calls: How many calls may compute or wait for a model at once. Each takes a thread.
        max_waiting: How many more calls may wait for a thread. Others are refused with a 503.
        timeout_s: Seconds until a call is ended.
    """

    max_body_bytes: int = 16 * MEBIBYTE
    max_texts: int = 2048
    max_characters: int = 4_000_000
    max_calls: int = 64
    max_waiting: int = 256
    timeout_s: float = 300.0

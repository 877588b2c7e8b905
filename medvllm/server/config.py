"""How a server is set up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
        loaded: The models that the server loads at its start. If there is one, it answers requests that name none.
        redaction_keys: The files of the keys that a client of `/v1/redact` can name.
    """

    max_body_bytes: int = 16 * MEBIBYTE
    max_texts: int = 2048
    max_characters: int = 4_000_000
    max_calls: int = 64
    max_waiting: int = 256
    timeout_s: float = 300.0
    loaded: tuple[str, ...] = ()
    redaction_keys: Mapping[str, Path] = field(default_factory=dict)

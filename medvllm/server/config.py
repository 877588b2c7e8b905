"""How a server is set up."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvllm.engines import EngineName

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServerConfig:
    """The limits of a server.

    Attributes:
        max_body_bytes: The largest body of a request, also after decompression.
        max_open_bytes: The most bytes of the bodies of all requests that are open, also after decompression.
        max_texts: The most texts of one request.
        max_characters: The most characters of all texts of one request.
        max_tokens: The most tokens that a model reads for one request; None for no limit.
        max_calls: How many calls may compute or wait for a model at once. Each takes a thread.
        max_waiting: How many more calls may wait for a thread. Others are refused with a 429.
        max_concurrent: How many requests of one key may be open at once; None for no limit of its own.
        timeout_s: Seconds until a call is ended.
        body_timeout_s: Seconds within which the body of a request has to arrive.
        requires_key: Whether a request needs an API key. Without one, everybody who reaches the server may do all.
        hosts: Names, beside localhost, that of this machine and addresses, under which clients may reach the server. A
            web page can make a browser send requests here under a name of its own.
        engine: What computes if a request does not say it. If it cannot compute a model, torch does.
        loaded: The models that the server loads at its start. If there is one, it answers requests that name none.
        redaction_keys: The files of the keys that a client of `/v1/redact` can name.
        own_key: The key with which commands of this user find the server and may do all; None for none.
    """

    max_body_bytes: int = 16 * MEBIBYTE
    max_open_bytes: int = 512 * MEBIBYTE
    max_texts: int = 2048
    max_characters: int = 4_000_000
    max_tokens: int | None = None
    max_calls: int = 64
    max_waiting: int = 256
    max_concurrent: int | None = None
    timeout_s: float = 300.0
    body_timeout_s: float = 60.0
    requires_key: bool = False
    hosts: tuple[str, ...] = ()
    engine: "EngineName" = "torch"
    loaded: tuple[str, ...] = ()
    redaction_keys: Mapping[str, Path] = field(default_factory=dict)
    own_key: str | None = field(default=None, repr=False)

    def restricted(self, limits: Mapping[str, int]) -> "ServerConfig":
        """Return these limits for a key, each as low as the key's own one."""
        present = {name: getattr(self, name) for name in limits}
        lower: dict[str, Any] = {
            name: own if present[name] is None else min(own, present[name]) for name, own in limits.items()
        }
        return replace(self, **lower) if lower else self

"""API keys of a server: who may do what, how much at once, and until when. Only the digest of a key is kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Right = Literal["read", "infer", "manage"]
RIGHTS: tuple[Right, ...] = get_args(Right)
DEFAULT_RIGHTS: tuple[Right, ...] = ("read", "infer")

_PREFIX = "mvk_"
_MIN_CHARACTERS = 20  # of a key that somebody made by hand


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key. The key itself is not.

    Attributes:
        name: Its name, for people, lists and logs.
        digest: The SHA-256 of the key. A key has 256 random bits, so nobody can find it from its digest.
        rights: What it may do: "read" lists and metadata, "infer" with texts, and "manage" what is in memory.
        limits: Its own limits, by their names in the server's; each can only be lower than the server's.
        created: When it was made, in UTC, as ISO 8601.
        author: Who made it.
        expires: From when on it is refused; None for never.
        revoked: When it was revoked; None if it was not.
    """

    name: str
    digest: str
    rights: tuple[Right, ...] = DEFAULT_RIGHTS
    limits: Mapping[str, int] = field(default_factory=dict)
    created: str | None = None
    author: str | None = None
    expires: str | None = None
    revoked: str | None = None

    @property
    def is_valid(self) -> bool:
        """Whether it is accepted now."""
        from datetime import UTC, datetime  # imported here, as others below, because the settings import this module

        has_expired = self.expires is not None and datetime.fromisoformat(self.expires) <= datetime.now(UTC)
        return self.revoked is None and not has_expired


def new_key() -> str:
    """Return a new key."""
    import secrets

    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> str:
    """Return the digest of a key."""
    import hashlib

    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def prove(key: str, nonce: str) -> str:
    """Return what shows that somebody has a key, without telling it: an HMAC-SHA-256 over a text of the asker."""
    import hashlib
    import hmac

    return hmac.new(key.encode(), f"medvllm server: {nonce}".encode(), hashlib.sha256).hexdigest()


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """Return the keys in a text such as "KEY,KEY:read+infer+manage". ValueError: one cannot be used."""
    if text.lower() == "none":
        return ()
    found = []
    for number, part in enumerate(text.split(","), 1):
        key, colon, stated = part.strip().partition(":")
        rights: tuple[Right, ...] = DEFAULT_RIGHTS
        if colon:
            rights = tuple(right for right in RIGHTS if f"+{right}+" in f"+{stated}+")
        if len(key) < _MIN_CHARACTERS:
            raise ValueError(f"not usable: key {number} has fewer than {_MIN_CHARACTERS} characters")
        if colon and {*stated.split("+")} - {*RIGHTS}:
            raise ValueError(f"not usable: the rights of key {number} are not among {'+'.join(RIGHTS)}")
        found.append(ApiKey(f"MEDVLLM_API_KEYS:{number}", digest_of(key), rights))
    return tuple(found)

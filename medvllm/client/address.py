"""Where a server is, and how its client connects."""

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from medvllm import settings
from medvllm.errors import SettingError

_PROXIED = ("http://", "https://", "all://")  # for which the environment may name a proxy


def choose_url(given: str | None) -> str:
    """Return the address of a server: the one that is given, or that of MEDVLLM_SERVER.

    Raises:
        SettingError: It is no address of a server.
    """
    if given is None:
        return settings.SERVER()
    try:
        return settings.SERVER.parse(given)
    except ValueError as error:
        shown = settings.without_password(given)
        raise SettingError(
            f"The address of the server is {shown!r}, which is {error}.\nWrite it as: http://127.0.0.1:8000",
            value=shown,
        ) from None


def http_options(url: str, key: str | None) -> dict[str, Any]:
    """Return the options of an HTTP client for a server.

    Args:
        url: The address of the server.
        key: The API key; None for that of MEDVLLM_API_KEY, if there is one.

    Raises:
        SettingError: The key cannot be sent.
    """
    chosen = settings.API_KEY() if key is None else key
    if chosen is not None and not (chosen.isascii() and chosen.isprintable() and chosen.strip()):
        raise SettingError(
            f"The API key has characters that cannot be sent.\nIs it whole? Set it with: {settings.API_KEY.name}",
            setting=settings.API_KEY.name,
        )
    headers = {"Content-Type": "application/json"}
    if chosen is not None:
        headers["Authorization"] = f"Bearer {chosen.strip()}"
    options: dict[str, Any] = {"base_url": url, "headers": headers, "follow_redirects": False}
    if not is_here(url):
        return options
    if url.startswith("http:"):  # the certificates that TLS needs take longer to read than a short answer
        return options | {"trust_env": False, "verify": False}
    # A proxy of the environment must not see what is sent to this machine. The certificates that it names are used.
    return options | {"mounts": dict.fromkeys(_PROXIED)}


def is_here(url: str) -> bool:
    """Return whether an address is one of this machine, for itself only."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

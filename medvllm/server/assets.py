"""The files that pages of the server link to: style, scripts and icon. All of them come with medvllm."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_TYPES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "htmx-2.0.11.min.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """A file, with its media type."""

    content: bytes
    kind: str


@cache
def assets() -> dict[str, Asset]:
    """Return the files by their names."""
    folder = files("medvllm.server") / "page" / "static"
    return {name: Asset((folder / name).read_bytes(), kind) for name, kind in _TYPES.items()}


@cache
def address_of(name: str) -> str:
    """Return the address of a file. It changes with the file, so that browsers may keep what they have."""
    digest = hashlib.sha256(assets()[name].content).hexdigest()
    return f"/static/{name}?{digest[:12]}"

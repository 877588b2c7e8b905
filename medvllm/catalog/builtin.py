"""The built-in medical models, as builtin.toml describes them."""

import json
from binascii import crc32
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medvllm.catalog.entries import from_toml
from medvllm.metadata import ModelMetadata

_FOLDER = Path(__file__).parent


@cache
def builtin_entries() -> Mapping[str, ModelMetadata]:
    """Return the built-in entries by name, in the order of the file. A process reads them once."""
    text = (_FOLDER / "builtin.toml").read_text(encoding="utf-8")
    return MappingProxyType(from_toml(text, "built-in", loads=parse_builtin))


def content_as_json(text: str) -> str:
    """Return what `make docs` writes to builtin.json: the content of builtin.toml, and a checksum of that file."""
    import tomllib

    content = {"crc32": crc32(text.encode()), "content": tomllib.loads(text)}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"


def parse_builtin(text: str) -> dict[str, Any]:
    """Return the content of builtin.toml, from builtin.json if that was made from this text: it is faster to read."""
    try:
        made = json.loads((_FOLDER / "builtin.json").read_bytes())
        if made["crc32"] == crc32(text.encode()):
            content: dict[str, Any] = made["content"]
            return content
    except (OSError, ValueError, KeyError, TypeError):
        pass
    import tomllib

    return tomllib.loads(text)

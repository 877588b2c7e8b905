"""Receipts as a client sees them: without the folders of the server's machine."""

import os
from typing import Any

from medvllm.receipt import Receipt

_HIDDEN = "a folder of the server"


def describe_receipt(receipt: Receipt) -> dict[str, Any]:
    """Return a receipt as JSON values. What is a path of this machine is replaced; digests say which files they are."""
    shown: dict[str, Any] = hide_paths(receipt.to_dict())
    return shown


def hide_paths(value: Any) -> Any:
    """Return a value of JSON in which each text that is a path of this machine is replaced."""
    if isinstance(value, dict):
        return {key: hide_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_paths(item) for item in value]
    return _HIDDEN if isinstance(value, str) and _is_path(value) else value


def _is_path(text: str) -> bool:
    """Return whether a text is, or contains, a place on this machine; "org/name" may be one, or a repository."""
    words = text.replace("'", " ").replace('"', " ").replace("=", " ").split()
    is_rooted = any(word.startswith(("/", "~", "./", "../", "file:")) for word in words)
    return is_rooted or (os.sep in text and os.path.exists(text))

"""Receipts as a client sees them: without the folders of the server's machine."""

import os
import re
from collections.abc import Mapping
from typing import Any

from medvllm.receipt import Receipt

_HIDDEN = "a folder of the server"
# The beginning of a place: of a URL of a file, in a home, beside the working directory, or from the root.
_ROOTED = re.compile(
    r"""\bfile:/
    | (?<![\w/.~-])(?:
        (?:~[\w.-]*|\.{1,2})/
        | (?:(?<!:)/+|/(?!/))(?P<root>[^/\s'"`<>()\[\]{},;]+)  # after a colon, two slashes are those of a URL
    )""",
    re.VERBOSE,
)


def describe_receipt(receipt: Receipt) -> dict[str, Any]:
    """Return a receipt as JSON values. What is a path of this machine is replaced; digests say which files they are."""
    shown: dict[str, Any] = hide_paths(receipt.to_dict())
    return shown


def hide_paths(value: Any) -> Any:
    """Return a value of JSON in which each text that is a path of this machine is replaced."""
    if isinstance(value, Mapping):
        return {key: hide_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_paths(item) for item in value]
    return _HIDDEN if isinstance(value, str) and _is_path(value) else value


def _is_path(text: str) -> bool:
    """Return whether a text is, or contains, a place on this machine. "5 mg /day" and "https://host/page" are none."""
    return text.startswith(os.sep) or any(map(_is_place, _ROOTED.finditer(text)))


def _is_place(found: re.Match[str]) -> bool:
    if root := found["root"]:
        return os.path.lexists(os.sep + root)
    return not found[0].startswith("~") or os.path.expanduser(found[0]) != found[0]

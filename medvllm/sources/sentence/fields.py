"""The fields of a JSON config: each is read by name and checked, and none may be left unread."""

import json
from collections.abc import Callable, Mapping
from typing import Any


class Refused(Exception):
    """A folder has something that medvllm does not support. The message follows the folder's name."""


class Fields:
    """The fields of one config file that are not read yet.

    A field that nothing here reads could change the vectors, so the reader ends with `check_all_read`.
    """

    def __init__(self, file: str, content: Mapping[str, Any]) -> None:
        self.file = file
        self._left = dict(content)

    def read(self, name: str, fits: Callable[[Any], bool], default: Any = None) -> Any:
        """Return a field's value, or the default if the field is absent. Raise Refused unless the value `fits`."""
        if name not in self._left:
            return default
        value = self._left.pop(name)
        if not fits(value):
            raise Refused(f"has {name} {shorten(value)} in {self.file}, which medvllm does not support")
        return value

    def ignore(self, *names: str) -> None:
        """Skip fields that do not change the vectors."""
        for name in names:
            self._left.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def check_all_read(self) -> None:
        """Raise Refused if a field is left that medvllm does not know."""
        check_known(self._left, self.file)


def check_known(unknown: Mapping[str, Any] | set[str], file: str) -> None:
    """Raise Refused if there are fields that medvllm does not know."""
    if unknown:
        raise Refused(f"has {min(unknown)[:80]!r} in {file}, which medvllm does not know")


def is_bool(value: Any) -> bool:
    return type(value) is bool


def is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def is_none(value: Any) -> bool:
    return value is None


def shorten(value: Any) -> str:
    """Return a value as JSON, cut to fit into a message."""
    return json.dumps(value, default=str)[:80]

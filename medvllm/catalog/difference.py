"""What differs between two entries, fact by fact."""

from dataclasses import dataclass
from typing import Any

from medvllm.catalog.log import Locked
from medvllm.metadata import ModelMetadata


@dataclass(frozen=True)
class Difference:
    """One fact, or one locked file, of two entries. None: that entry does not have it."""

    what: str  # a fact's keyword, or "file PATH"
    before: Any
    after: Any

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON has it."""
        return dict(vars(self))


def differences(
    before: ModelMetadata, after: ModelMetadata, locked: tuple[Locked | None, Locked | None] = (None, None)
) -> list[Difference]:
    """Return what differs, sorted: facts, then files, where a lock has those of both."""
    found = _unequal(before.facts(), after.facts())
    if locked[0] is not None and locked[1] is not None:
        files = [{f"file {path}": digest for path, digest in lock.files.items()} for lock in locked if lock]
        found += _unequal(files[0], files[1])
    return found


def _unequal(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    # By their text: to Python, True is 1 is 1.0.
    return [
        Difference(what, before.get(what), after.get(what))
        for what in sorted(before.keys() | after.keys())
        if repr(before.get(what)) != repr(after.get(what))
    ]

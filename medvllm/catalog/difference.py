"""The differences between two entries, fact by fact."""

from dataclasses import dataclass
from typing import Any

from medvllm.catalog.log import Locked
from medvllm.metadata import ModelMetadata


@dataclass(frozen=True)
class Difference:
    """A fact, or a locked file, that differs between two entries. A missing one is None."""

    what: str  # a fact's keyword, or "file PATH"
    before: Any
    after: Any

    def to_dict(self) -> dict[str, Any]:
        """Return the difference in the form that is printed as JSON."""
        return dict(vars(self))


def differences(
    before: ModelMetadata, after: ModelMetadata, locked: tuple[Locked | None, Locked | None] = (None, None)
) -> list[Difference]:
    """Return what differs, sorted: first facts, then files if the lock file has those of both entries."""
    found = _unequal(before.facts(), after.facts())
    if locked[0] is not None and locked[1] is not None:
        files = [{f"file {path}": digest for path, digest in lock.files.items()} for lock in locked if lock]
        found += _unequal(files[0], files[1])
    return found


def _unequal(before: dict[str, Any], after: dict[str, Any]) -> list[Difference]:
    # Compared as text: Python takes True, 1 and 1.0 for equal.
    return [
        Difference(what, before.get(what), after.get(what))
        for what in sorted(before.keys() | after.keys())
        if repr(before.get(what)) != repr(after.get(what))
    ]

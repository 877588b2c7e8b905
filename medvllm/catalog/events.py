"""What the stored catalogue tells of itself: who changed what, when and why; and where aliases point."""

import re
from dataclasses import dataclass
from typing import Any

HALVES = re.compile("[\ud800-\udfff]")  # of characters: no file and no terminal takes one alone
DEFAULT = "default"  # the alias that a bare name means
ACTIONS = frozenset(
    (
        *("created", "migrated", "registered", "changed", "unregistered", "loaded", "locked", "imported"),
        *("aliased", "unaliased", "protected", "unprotected"),
    )
)


@dataclass(frozen=True)
class Event:
    """One change, as the history keeps it. `detail` has what changed; no event holds a text that a model was given."""

    seq: int
    at: str  # UTC, ISO 8601
    who: str  # the user of the operating system
    machine: str
    action: str  # one of ACTIONS
    name: str | None
    version: int | None
    alias: str | None
    reason: str | None
    detail: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON has it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Alias:
    """A name that points to a version, such as production; `version` is None for a protection without an alias yet."""

    name: str
    alias: str
    version: int | None
    protected: bool

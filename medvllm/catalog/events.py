"""Events of the history, and aliases."""

from dataclasses import dataclass
from typing import Any

DEFAULT = "default"  # the alias that sets the version which a bare name means
ACTIONS = frozenset(
    (
        *("created", "migrated", "registered", "changed", "unregistered", "loaded", "locked", "imported"),
        *("aliased", "unaliased", "protected", "unprotected"),
    )
)


@dataclass(frozen=True)
class Event:
    """One change, as the history keeps it. No event has a text that a model was given."""

    seq: int
    at: str  # UTC, ISO 8601
    who: str  # the user of the operating system
    machine: str
    action: str  # one of ACTIONS
    name: str | None
    version: int | None
    alias: str | None
    reason: str | None
    detail: dict[str, Any]  # what changed

    def to_dict(self) -> dict[str, Any]:
        """Return the event in the form that is written as JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Alias:
    """A name that points to a version, such as "production"."""

    name: str
    alias: str
    version: int | None  # None: the alias is protected but not set yet
    protected: bool

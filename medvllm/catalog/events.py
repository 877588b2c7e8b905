"""Events of the history, and aliases."""

from dataclasses import dataclass
from typing import Any

from medvllm.errors import RequestError
from medvllm.spelling import has_lone_surrogate

DEFAULT = "default"  # the alias that sets the version which a bare name means
_MAX_REASON = 2000  # characters
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


def check_reason(reason: str | None) -> None:
    """Raise RequestError if the history cannot keep a reason."""
    if reason is not None and not 0 < len(reason) <= _MAX_REASON:
        raise RequestError(f"A reason must have 1 to {_MAX_REASON:,} characters, not {len(reason):,}.")
    if reason is not None and has_lone_surrogate(reason):
        raise RequestError("A reason must not contain half of a surrogate pair: it is not valid Unicode text.")

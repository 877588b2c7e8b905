"""The log of a name: each version with its origin and its state."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from medvllm.catalog.events import Alias, Event
from medvllm.metadata import ModelMetadata


class Locked(NamedTuple):
    """What a lock file has of a version: a digest over all files, and the SHA-256 of each."""

    digest: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class VersionRecord:
    """One stored version. `baseline_digest` and `locked` are digests over files: equal ones are the same files."""

    version: int
    at: str | None  # UTC, ISO 8601; None if the history does not say
    who: str | None
    machine: str | None
    reason: str | None
    aliases: tuple[str, ...]  # the aliases that point to it
    protected: bool  # whether one of them is protected
    is_meant: bool  # whether the bare name means it
    deprecated: str | None
    successor: str | None
    baseline_digest: str | None
    baseline_at: str | None
    baseline_by: str | None
    locked: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record in the form that is printed as JSON."""
        return vars(self) | {"aliases": list(self.aliases)}


def records(
    entries: Iterable[ModelMetadata],
    aliases: Iterable[Alias],
    events: Iterable[Event],
    meant: int | None,
    locked: Mapping[int, Locked],
) -> list[VersionRecord]:
    """Return the records of a name's versions; `meant` is the version that the bare name means."""
    made: dict[int | None, Event] = {}
    baselines: dict[int | None, Event] = {}
    for event in events:
        if event.action == "registered":
            made[event.version] = event
        if event.action in ("registered", "changed") and "baseline_digest" in event.detail.get("facts", {}):
            baselines[event.version] = event
    pointing = [alias for alias in aliases if alias.version is not None]
    found = []
    for entry in entries:
        own = [alias for alias in pointing if alias.version == entry.version]
        first, lifecycle = made.get(entry.version), entry.lifecycle
        recorded = baselines.get(entry.version) if lifecycle.baseline_digest else None
        lock = locked.get(entry.version)
        found.append(
            VersionRecord(
                version=entry.version,
                at=first.at if first else None,
                who=first.who if first else None,
                machine=first.machine if first else None,
                reason=first.reason if first else None,
                aliases=tuple(alias.alias for alias in own),
                protected=any(alias.protected for alias in own),
                is_meant=entry.version == meant,
                deprecated=lifecycle.deprecated,
                successor=lifecycle.successor,
                baseline_digest=lifecycle.baseline_digest,
                baseline_at=recorded.at if recorded else None,
                baseline_by=recorded.who if recorded else None,
                locked=lock.digest if lock else None,
            )
        )
    return found

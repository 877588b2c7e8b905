"""`GET /entry`: all that is known of an entry, and where from."""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from medvllm.catalog.event_words import describe_event
from medvllm.catalog.events import Alias, Event
from medvllm.catalog.log import VersionRecord
from medvllm.facts import GROUPS, known_facts
from medvllm.local_files import local_files
from medvllm.metadata import READ, ModelMetadata
from medvllm.one_line import one_line
from medvllm.server.context import Server, ServerOf
from medvllm.server.entries import repository
from medvllm.server.page.actions import actions_of
from medvllm.server.page.view import render_view
from medvllm.server.receipts import hide_paths
from medvllm.sources import Lock

router = APIRouter()

_SHOWN_ELSEWHERE = ("provenance", "baseline", "baseline_digest", "description", "deprecated", "successor")
_SHOWN_EVENTS = 100
_HEADINGS = {
    "": "General",
    "source": "Source",
    "behaviour": "Behaviour",
    "license": "Licence",
    "intended_use": "Intended use",
    "memory": "Memory",
    "lifecycle": "Lifecycle",
}


class FactRow(NamedTuple):
    """A fact, its value in words, how certain it is, and where it was seen."""

    name: str
    help: str
    value: str
    certainty: str
    where: str


@router.get("/entry")
async def show_entry(http: Request, server: ServerOf, name: Annotated[str, Query(max_length=500)] = "") -> HTMLResponse:
    """Show an entry, or one of its versions."""
    context = await server.look(http, lambda: _describe(server, name))
    return render_view(http, "catalogue", "entry.html", **context)


def _describe(server: Server, name: str) -> dict[str, Any]:
    entry = server.entry(name)
    registry = server.registry
    is_stored = entry.origin == "stored"
    versions: Sequence[VersionRecord] = registry.catalog.version_log(entry.name) if is_stored else []
    aliases: Sequence[Alias] = registry.catalog.aliases(entry.name) if is_stored else []
    events: Sequence[Event] = registry.catalog.history(entry.name) if is_stored else []
    return {
        "entry": entry,
        "repository": repository(entry),
        "files": local_files(entry),
        "loaded": [each for each in registry.loaded_models() if each.name == entry.name and not each.evicted],
        "actions": actions_of(entry),
        "groups": {_HEADINGS[group]: rows for group in ("", *GROUPS) if (rows := facts_of(entry, group))},
        "versions": versions[::-1],
        "shown": next((each for each in versions if each.version == entry.version), None),
        "aliases": aliases,
        "lock": _lock_of(entry),
        "events": [(event, _event_in_words(_without_paths(event))) for event in events[: -_SHOWN_EVENTS - 1 : -1]],
        "event_count": len(events),
    }


def facts_of(entry: ModelMetadata, group: str) -> list[FactRow]:
    """Return the known facts of one group, without paths of this machine. The licence is there if it is not known."""
    values, provenance = hide_paths(entry.to_dict()), hide_paths(dict(entry.provenance))
    rows = []
    for name, fact in known_facts().items():
        value = values[name]
        if fact.group != group or name in _SHOWN_ELSEWHERE:
            continue
        if name == "license" and value is None:
            value = "not known"
        if value in (None, "", [], {}):
            continue
        certainty, where = _certainty(provenance.get(name))
        rows.append(FactRow(name.replace("_", " "), fact.help, _in_words(value), certainty, where))
    return rows


def _certainty(provenance: str | None) -> tuple[str, str]:
    """Return how certain a fact is, in one word, and what its provenance says besides."""
    if provenance is None:
        return "declared", ""
    if provenance == READ:
        return "seen", READ
    word, _, where = provenance.partition(":")
    known = word.strip().lower()
    return (known, where.strip()) if known in ("seen", "verified", "likely") else ("declared", provenance)


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(one_line(value, ", "))


def _without_paths(event: Event) -> Event:
    return Event(**{**event.to_dict(), "detail": hide_paths(event.detail)})


def _event_in_words(event: Event) -> str:
    """Return what an event was about. The page says before it what it did."""
    words = describe_event(event).removeprefix(f"{event.action} ").lstrip("+~- ").replace("->", "→")
    return words.removesuffix(" no longer protected").removesuffix(" protected")


def _lock_of(entry: ModelMetadata) -> dict[str, Any] | None:
    """Return what the lock file approves of an entry; None if nothing."""
    locked = Lock.current().get(entry)
    if locked is None:
        return None
    size = sum(digest.size for digest in locked.files.values())
    files = [(name, digest.size, digest.sha256) for name, digest in sorted(locked.files.items())]
    return {"digest": locked.digest, "commit": locked.commit, "files": files, "size": size, "by": locked.approval}

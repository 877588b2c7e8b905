"""Events of the history in a few words."""

from typing import Any

from medvllm.catalog.events import Event
from medvllm.one_line import one_line


def describe_event(event: Event) -> str:
    """Return in a few words what an event did."""
    version = event.name if event.version is None else f"{event.name}@{event.version}"
    alias, before = f"{event.name}@{event.alias}", event.detail.get("from")
    words: dict[str, str] = {
        "created": "catalogue created",
        "migrated": f"catalogue migrated from schema {before} to {event.detail.get('to')}",
        "registered": f"+ {version}",
        "changed": f"~ {version}: {'; '.join(_fact(*item) for item in sorted(event.detail.get('facts', {}).items()))}",
        "unregistered": f"- {version}",
        "aliased": f"{'+' if before is None else '~'} {alias} -> {event.version}{_was(before)}",
        "unaliased": f"- {alias}{_was(before)}",
        "locked": f"locked {version}: files {str(event.detail.get('digest'))[:12]}",
        "imported": f"imported {version}: bundle {str(event.detail.get('bundle'))[:12]}",
        "protected": f"~ {alias} protected",
        "unprotected": f"~ {alias} no longer protected",
        "loaded": f"loaded {event.name if event.detail.get('origin') == 'direct' else version}",
    }
    return words.get(event.action, event.action)


def _fact(fact: str, value: Any) -> str:
    """Return in a few words what a fact is now."""
    if value is None:
        return f"no {fact}"
    if fact in ("baseline", "baseline_digest"):
        return fact
    text = str(one_line(value, ", "))
    return f"{fact} {text if len(text) <= 80 else text[:79] + '…'}"


def _was(before: Any) -> str:
    return "" if before is None else f" (was {before})"

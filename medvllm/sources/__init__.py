"""Entry -> local snapshot: a folder of one commit with everything a load needs."""

from pathlib import Path

from medvllm.metadata import ModelMetadata
from medvllm.names import parse
from medvllm.sources import conversion, folder, hub
from medvllm.sources.snapshot import Snapshot

__all__ = ["Snapshot", "resolve"]


def resolve(metadata: ModelMetadata, revision: str | None = None) -> Snapshot:
    """Return the snapshot of an entry, fetched if it is not here; `revision` overrides the entry's.

    Only the Hub is asked, and only for what its cache lacks. Weights that exist as a pickle alone are converted to
    safetensors once.
    """
    location = parse(metadata.location)
    if location.kind == "folder":
        found = folder.resolve(Path(location.name), revision)
    else:
        found = hub.resolve(location.name, revision or location.suffix or metadata.source.revision)
    snapshot = conversion.as_safetensors(found)
    snapshot.check()
    return snapshot

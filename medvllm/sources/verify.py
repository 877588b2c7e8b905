"""Comparing a model's files with what the lock approved, without the network."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from medvllm.errors import SourceError
from medvllm.metadata import ModelMetadata
from medvllm.names import ModelRef, parse_name
from medvllm.sources import conversion, dtype_copies, folder, home_models, hub
from medvllm.sources.digest import digest_files, find_differences
from medvllm.sources.lock import Lock
from medvllm.sources.locked_model import FOLDER, LockedModel
from medvllm.sources.os_errors import convert_os_errors
from medvllm.sources.snapshot import Snapshot

Prove = Callable[[Snapshot], dict[str, str]]


@convert_os_errors
def verify_files(metadata: ModelMetadata, locked: LockedModel, prove: Prove | None = None) -> dict[str, str]:
    """Return what is wrong with each file that is not as the lock approved it. Every file is hashed again.

    Args:
        metadata: The entry.
        locked: What the lock approves.
        prove: Does the same for copies of the weights in another dtype. It is called if there are any.
    """
    location = parse_name(metadata.location)
    source = FOLDER if location.kind == "folder" else location.name
    if source != locked.source:
        return {"source": f"is {source}, not {locked.source}"}
    try:
        snapshot = _read_again(metadata, location, locked)
    except SourceError as error:
        # Which files are the model's cannot be decided any more, but the locked ones can be compared.
        if locked.commit:
            path = hub.snapshot_folder(locked.source, locked.commit)
        else:
            path = home_models.locate(Path(location.name))
        present = [name for name in locked.files if (path / name).is_file()]
        flaws = find_differences(locked.files, digest_files(path, present, fresh=True))
        return flaws or {"files": f"cannot be used: {error}"}
    flaws = find_differences(locked.files, snapshot.files)
    if locked.converted and not flaws:
        flaws = conversion.find_flaws(snapshot, locked.converted)
        converted_at = conversion.converted_folder(snapshot)
        snapshot = replace(snapshot, converted=locked.converted, converted_at=converted_at)
    is_whole = all(snapshot.file(name).is_file() for name in snapshot.converted)
    if prove is not None and not flaws and is_whole and dtype_copies.list_copies(snapshot):
        flaws = prove(snapshot)
    return flaws


@convert_os_errors
def is_locked(metadata: ModelMetadata, snapshot: Snapshot) -> bool:
    """Return whether the present lock approves the files of a snapshot as they were read."""
    try:
        locked = Lock.current().get_approved(metadata)
    except SourceError:
        return False
    return locked is not None and (locked.files, locked.converted) == (snapshot.files, snapshot.converted)


def _read_again(metadata: ModelMetadata, location: ModelRef, locked: LockedModel) -> Snapshot:
    extra, adapter = metadata.source.extra_files, metadata.is_adapter
    if locked.commit is None:
        path = home_models.locate(Path(location.name))
        return folder.resolve_snapshot(path, None, extra=extra, adapter=adapter, fresh=True)
    code = bool(metadata.source.trust_remote_code)
    return hub.inspect_snapshot(
        hub.Request(locked.source, locked.commit, code=code, extra=tuple(extra), adapter=adapter)
    )

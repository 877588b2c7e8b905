"""A model's folder on this machine."""

from pathlib import Path

from medvllm.errors import RequestError, SnapshotNotFoundError
from medvllm.sources.snapshot import Snapshot, check_complete


def resolve(path: Path, revision: str | None) -> Snapshot:
    """Return the snapshot that a folder is. A folder has no revisions."""
    if revision is not None:
        raise RequestError(
            f"Revision {revision!r} was asked of {path}, but a folder has only what is in it.", option="revision"
        )
    try:
        found, there = path.is_dir(), path.exists()
    except OSError as error:  # a name longer than the file system takes
        raise SnapshotNotFoundError(f"Folder '{str(path)[:80]}…' cannot be opened: {error.strerror}.") from error
    if not found:
        what = "is a file, not a folder" if there else "is not there"
        raise SnapshotNotFoundError(f"Folder '{path}' {what}.\nName the folder that holds config.json.", path=str(path))
    check_complete(path)
    return Snapshot(path, None, None, path)

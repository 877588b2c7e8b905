"""A model's folder on this machine."""

from pathlib import Path

from medvllm.errors import RequestError, SnapshotNotFoundError
from medvllm.sources.digest import digests
from medvllm.sources.snapshot import Snapshot, needed, present


def resolve(path: Path, revision: str | None, *, fresh: bool = False) -> Snapshot:
    """Return the snapshot that a folder is, its files hashed (`fresh`: again). A folder has no revisions."""
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
    return Snapshot(path, None, None, path, digests(path, needed(present(path)), fresh=fresh))

"""A model's folder on this machine."""

import hashlib
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from medvllm import settings
from medvllm.errors import RequestError, SnapshotNotFoundError, SourceError
from medvllm.files import place, sync_folder
from medvllm.sources.digest import Digest, described, differences, digests
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


def keep(files: Mapping[str, Path], wanted: Mapping[str, Digest], *, link: bool) -> Path:
    """Make files a folder in MEDVLLM_HOME, named after their digests, and return it; one that is there stays.

    `link`: nobody else writes to the files, so that a second name of each will do.
    """
    from filelock import FileLock

    key = hashlib.sha256(repr(sorted((path, digest.sha256) for path, digest in wanted.items())).encode())
    target = settings.HOME() / "models" / key.hexdigest()[:40]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        for left in target.parent.glob(f"{target.name}.*/"):  # by a process that died
            shutil.rmtree(left)
        if target.is_dir() and not differences(wanted, digests(target, needed(present(target)), fresh=True)):
            return target
        work = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        try:
            for path, file in files.items():
                (work / path).parent.mkdir(parents=True, exist_ok=True)
                place(file, work / path, link=link)
            if not link and (flaws := differences(wanted, digests(work, list(files)))):
                raise SourceError(f"The files changed while they were copied: {described(flaws)}.")
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target

"""Files that are written whole or not at all."""

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that a reader, or the next process after a crash, sees the old content or all of the new.

    The caller sees to it that nobody else writes the same file at this moment.
    """
    with _partial(file) as partial:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    sync_folder(file.parent)


def place(file: Path, target: Path, *, link: bool = True) -> None:
    """Give a file a second name, by a `link` where the disk has them, or a copy; `target` is whole at every moment."""
    with _partial(target) as partial:
        if not (link and _linked(file, partial)):
            with file.open("rb") as source, partial.open("xb") as out:
                shutil.copyfileobj(source, out)
                out.flush()
                os.fsync(out.fileno())
        partial.replace(target)
    sync_folder(target.parent)


def _linked(file: Path, target: Path) -> bool:
    try:
        os.link(file, target)
    except OSError:  # another disk, or one without links
        return False
    return True


def point(target: Path, to: str) -> None:
    """Make `target` a symbolic link, in place of what is there."""
    with _partial(target) as partial:
        partial.symlink_to(to)
        partial.replace(target)


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """Give a name for a file that is to become `target`, and remove what writers that died have left of theirs."""
    stem = f".{target.name[:100]}."
    for left in target.parent.glob(f"{glob.escape(stem)}????????.partial"):
        left.unlink(missing_ok=True)
    partial = target.with_name(f"{stem}{secrets.token_hex(4)}.partial")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def make_own(folder: Path) -> None:
    """Make a folder, and those above it that are not there, so that nobody else writes to them, whatever the umask."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o755, exist_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_trusted(path: Path) -> bool:
    """Return whether nobody else could have written a file or folder: its owner is this user, root or its folder's
    owner, and neither it nor its folder is writable for others."""
    try:
        own, folder = path.stat(), path.parent.stat()
    except OSError:
        return False
    is_private = not (own.st_mode | folder.st_mode) & 0o022
    return os.name == "nt" or (is_private and own.st_uid in (os.geteuid(), 0, folder.st_uid))

"""Files and folders that medvllm keeps for itself: written whole or not at all, and private to their user."""

import errno
import glob
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

# What a system answers that has no such operation, or not on this file system.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY})
_LEFT_S = 3_600.0  # after which a partial file that cannot be asked for its writer is nobody's


def write_whole(file: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file so that a reader, or the next process after a crash, sees the old content or all of the new.

    The caller sees to it that nobody else writes the same file at this moment.

    Args:
        file: The file. A link in its place is replaced; for what a user names, there is `medvllm.destination`.
        content: All of its bytes.
        private: Whether only its user may read it, whatever the umask; in a group's folder, its group too.
    """
    with partial(file) as (handle, path):
        with os.fdopen(os.dup(handle), "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(handle)
        chmod(handle, own_mode(file.parent) & 0o666 if private else common_mode())
        path.replace(file)
    sync_folder(file.parent)


def link_or_copy(file: Path, target: Path, *, link: bool = True) -> None:
    """Give a file a second name, by a `link` where the disk has them, or a copy; `target` is whole at every moment."""
    if link and _try_link(file, target):
        return
    import shutil

    with partial(target) as (handle, path):
        with file.open("rb") as source, os.fdopen(os.dup(handle), "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
            out.flush()
            sync(handle)
        chmod(handle, stat.S_IMODE(file.stat().st_mode))
        path.replace(target)
    sync_folder(target.parent)


def replace_with_symlink(target: Path, to: str) -> bool:
    """Make `target` a symbolic link, in place of what is there; False where the disk has no links."""
    with _spare(target) as path:
        try:
            path.symlink_to(to)
        except OSError as error:
            if error.errno not in (errno.EPERM, *UNSUPPORTED):
                raise
            return False
        path.replace(target)
    return True


def _try_link(file: Path, target: Path) -> bool:
    with _spare(target) as path:
        try:
            os.link(file, path)
        except OSError:  # another disk, or one without links
            return False
        path.replace(target)
    sync_folder(target.parent)
    return True


@contextmanager
def partial(target: Path) -> Iterator[tuple[int, Path]]:
    """Give a new file, open for writing, that is to become `target`, and remove what dead writers have left of theirs.

    Nobody else can open it, or have put something in its place.
    """
    sweep(target)
    handle, path = _create_partial(target)
    try:
        yield handle, path
    finally:
        os.close(handle)
        with suppress(OSError):
            path.unlink()


def _create_partial(target: Path) -> tuple[int, Path]:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    while True:
        path = _choose_name(target)
        handle = os.open(path, flags, 0o600)
        if sys.platform != "win32":
            with suppress(OSError):  # no such locks here: then its age tells
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, path
        os.close(handle)  # swept before it was locked


@contextmanager
def _spare(target: Path) -> Iterator[Path]:
    """Give a free name beside `target`, and take away what is left under it."""
    sweep(target)
    path = _choose_name(target)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def _choose_name(target: Path) -> Path:
    return target.with_name(f"{_stem(target)}{os.urandom(8).hex()}.partial")


def _stem(target: Path) -> str:
    return f".{target.name[:48]}."  # of a name that is as long as a name may be, a part


def sweep(target: Path) -> None:
    """Remove the partial files of `target` whose writers have died."""
    with suppress(OSError):
        for left in target.parent.glob(f"{glob.escape(_stem(target))}????????????????.partial"):
            with suppress(OSError):
                if _is_left(left):
                    left.unlink()


def _is_left(path: Path) -> bool:
    """Return whether no living process writes a partial file: one that does holds its lock."""
    status = path.lstat()
    if sys.platform != "win32" and stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError:
            pass
        finally:
            os.close(handle)
    return abs(time.time() - status.st_ctime) > _LEFT_S


def make_own(folder: Path) -> None:
    """Make a folder, and those above it that are not there, so that only this user may enter, whatever the umask.

    Below a folder that a group shares (its setgid bit is set), the group keeps the rights that it has there.
    """
    missing = []
    for path in (folder, *folder.parents):
        if path.is_dir():
            break
        missing.append(path)
    for path in reversed(missing):
        mode = own_mode(path.parent)
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            if not path.is_dir():  # else another process was first
                raise
        else:
            chmod(path, mode)  # the umask took from it


def own_mode(folder: Path) -> int:
    """Return the mode of what medvllm makes in a folder: its user's alone, or also that of the group that shares it."""
    mode = folder.stat().st_mode
    return 0o700 | (mode & 0o2070 if mode & stat.S_ISGID else 0)


def make_own_file(file: Path) -> None:
    """Make an empty file that only its user may read; in a group's folder, its group too. One that is there stays."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    try:
        chmod(handle, own_mode(file.parent) & 0o666)
    finally:
        os.close(handle)


def chmod(file: int | Path, mode: int) -> None:
    """Set a file's mode, where the file system has modes."""
    with suppress(OSError):
        os.chmod(file, mode)


def common_mode() -> int:
    """Return the mode that the umask leaves a new file."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        mask = int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration, ValueError, IndexError):
        mask = os.umask(0o077)
        os.umask(mask)
    return 0o666 & ~mask


def sync(handle: int) -> None:
    """Have a file's bytes on the disk, where the file system can tell that they are."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can. What was done is done in any case."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # one that may be written to and not read
        return
    try:
        sync(handle)
    except PermissionError:
        pass
    finally:
        os.close(handle)


def is_trusted(path: Path) -> bool:
    """Return whether nobody else could have written a file or folder.

    Its owner is this user, root or the owner of its folder, and others can write neither to it nor to its folder.
    """
    try:
        own, folder = path.stat(), path.parent.stat()
    except OSError:
        return False
    is_private = not (own.st_mode | folder.st_mode) & 0o022
    return os.name == "nt" or (is_private and own.st_uid in (os.geteuid(), 0, folder.st_uid))

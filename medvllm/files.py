"""medvllm's own files and folders: each is written as a whole or not at all, and private to its user."""

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

# Errors of an operation that the operating system or the file system does not have.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY})
_LEFT_S = 3_600.0  # a partial file without a lock that is older belongs to no running process


def write_whole(file: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file so that readers see the old content or all of the new, even after a crash.

    The caller ensures that nobody else writes the file at the same time.

    Args:
        file: The file. An existing link is replaced. For a path that a user gives, use `medvllm.destination`.
        content: All of its bytes.
        private: Whether only its user may read it, whatever the umask is. In a folder of a group, the group may, too.
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
    """Give a file a second name: a hard link if `link` is set and the disk has links, or else a copy.

    `target` is replaced as a whole.
    """
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
    """Replace `target` by a symbolic link. Return False if the disk has no links."""
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
    """Give a new file beside `target`, open for writing, which the caller renames to `target`.

    Nobody else can open or replace it. Partial files of killed processes are removed first.
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
            with suppress(OSError):  # the file system has no locks: the age of the file decides
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, path
        os.close(handle)  # another process removed it before it was locked


@contextmanager
def _spare(target: Path) -> Iterator[Path]:
    """Give a free name beside `target`. A file of that name is removed afterwards."""
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
    return f".{target.name[:48]}."  # shortened, as the longest allowed name leaves no room


def sweep(target: Path) -> None:
    """Remove the partial files of `target` that killed processes left."""
    with suppress(OSError):
        for left in target.parent.glob(f"{glob.escape(_stem(target))}????????????????.partial"):
            with suppress(OSError):
                if _is_left(left):
                    left.unlink()


def _is_left(path: Path) -> bool:
    """Return whether no running process writes a partial file. One that does holds its lock."""
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
    """Make a folder and its missing parents, so that only this user may enter them, whatever the umask is.

    Inside a folder that a group shares (its setgid bit is set), the group has the same rights as there.
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
            if not path.is_dir():  # another process was first
                raise
        else:
            chmod(path, mode)  # the umask may have removed bits


def own_mode(folder: Path) -> int:
    """Return the mode for a new folder inside `folder`: for the user alone, or also for the group that shares it."""
    mode = folder.stat().st_mode
    return 0o700 | (mode & 0o2070 if mode & stat.S_ISGID else 0)


def make_own_file(file: Path) -> None:
    """Make an empty file that only its user may read, and in a folder of a group, the group. An existing file stays."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    try:
        chmod(handle, own_mode(file.parent) & 0o666)
    finally:
        os.close(handle)


def chmod(file: int | Path, mode: int) -> None:
    """Set a file's mode, if the file system has modes."""
    with suppress(OSError):
        os.chmod(file, mode)


def common_mode() -> int:
    """Return the mode of a new file under the present umask."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        mask = int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration, ValueError, IndexError):
        mask = os.umask(0o077)
        os.umask(mask)
    return 0o666 & ~mask


def sync(handle: int) -> None:
    """Wait until a file's bytes are on the disk, if the file system supports that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Wait until renames in a folder are on the disk, as far as the system supports that."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # the folder may be written but not read
        return
    try:
        sync(handle)
    except PermissionError:
        pass
    finally:
        os.close(handle)


def is_trusted(path: Path) -> bool:
    """Return whether no other user could have written a file or folder.

    Its owner is this user, root or the owner of its folder, and others can write neither to it nor to its folder.
    """
    try:
        own, folder = path.stat(), path.parent.stat()
    except OSError:
        return False
    is_private = not (own.st_mode | folder.st_mode) & 0o022
    return os.name == "nt" or (is_private and own.st_uid in (os.geteuid(), 0, folder.st_uid))

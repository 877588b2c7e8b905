"""Writes medvllm's own files and folders: atomically, and with access for their user only."""

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

# The error codes of an operation that the system, or this file system, does not have.
UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOTTY})
_LEFT_S = 3_600.0  # age at which a partial file is removed where file locks do not work


def write_whole(file: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file atomically. A reader, also one after a crash, sees either the old content or the new one.

    The caller must make sure that nobody else writes the same file at the same time. For a path that a user gave, use
    `medvllm.destination`, which follows links.

    Args:
        file: The file. If it is a symbolic link, the link is replaced.
        content: The whole content.
        private: Whether only the user may read the file, whatever the umask. In a folder that a group shares, the group
            may read it too.
    """
    with open_partial(file) as (handle, path):
        with os.fdopen(os.dup(handle), "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(handle)
        chmod(handle, own_mode(file.parent) & 0o666 if private else common_mode())
        path.replace(file)
    sync_folder(file.parent)


def link_or_copy(file: Path, target: Path, *, link: bool = True) -> None:
    """Make `target` a hard link to a file, or a copy of it. `target` is replaced atomically.

    Args:
        file: The file.
        target: The path of the link or copy.
        link: Whether to try a hard link first. If that fails, for example across disks, the file is copied.
    """
    if link and _try_link(file, target):
        return
    import shutil

    with open_partial(target) as (handle, path):
        with file.open("rb") as source, os.fdopen(os.dup(handle), "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
            out.flush()
            sync(handle)
        chmod(handle, stat.S_IMODE(file.stat().st_mode))
        path.replace(target)
    sync_folder(target.parent)


def replace_with_symlink(target: Path, to: str) -> bool:
    """Replace `target` by a symbolic link. Return False if the file system has no symbolic links.

    Args:
        target: The path of the link.
        to: What the link contains.
    """
    with _spare_name(target) as path:
        try:
            path.symlink_to(to)
        except OSError as error:
            if error.errno not in (errno.EPERM, *UNSUPPORTED):
                raise
            return False
        path.replace(target)
    return True


def _try_link(file: Path, target: Path) -> bool:
    with _spare_name(target) as path:
        try:
            os.link(file, path)
        except OSError:  # another disk, or one without links
            return False
        path.replace(target)
    sync_folder(target.parent)
    return True


@contextmanager
def open_partial(target: Path) -> Iterator[tuple[int, Path]]:
    """Create a temporary file beside `target`, and remove it at the end unless it was renamed.

    Only this user can open the file. Partial files of writers that have died are removed first.

    Yields:
        The descriptor, open for writing, and the path. The caller renames the path to `target` when it is complete.
    """
    remove_partial_files(target)
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
        path = _partial_name(target)
        handle = os.open(path, flags, 0o600)
        if sys.platform != "win32":
            with suppress(OSError):  # without file locks here, the age of the file decides
                fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, path
        os.close(handle)  # another process removed it before it was locked


@contextmanager
def _spare_name(target: Path) -> Iterator[Path]:
    """Yield an unused path beside `target`. Whatever is still there at the end is removed."""
    remove_partial_files(target)
    path = _partial_name(target)
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def _partial_name(target: Path) -> Path:
    return target.with_name(f"{_stem(target)}{os.urandom(8).hex()}.partial")


def _stem(target: Path) -> str:
    return f".{target.name[:48]}."  # shortened, because file systems limit the length of a name


def is_partial(path: Path, target: Path) -> bool:
    """Return whether a path is that of a partial file of `target`."""
    return path.name.startswith(_stem(target)) and path.suffix == ".partial"


def remove_partial_files(target: Path) -> None:
    """Remove the partial files of `target` whose writers have died."""
    with suppress(OSError):
        for left in target.parent.glob(f"{glob.escape(_stem(target))}????????????????.partial"):
            with suppress(OSError):
                if _is_left(left):
                    left.unlink()


def _is_left(path: Path) -> bool:
    """Return whether the writer of a partial file has died. A living writer holds a lock on the file."""
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
    """Create a folder and its missing parents, with access for this user only, whatever the umask.

    Inside a folder that a group shares, that is, one with its setgid bit set, the group gets the same access.
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
            if not path.is_dir():  # if it is one, another process created it first
                raise
        else:
            chmod(path, mode)  # the umask may have removed some bits


def own_mode(folder: Path) -> int:
    """Return the mode for a new folder inside another one: access for the user, and for a group that shares it."""
    mode = folder.stat().st_mode
    return 0o700 | (mode & 0o2070 if mode & stat.S_ISGID else 0)


def make_own_file(file: Path) -> None:
    """Create an empty file, with access for its user and for a group that shares the folder. Keep an existing file."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    try:
        chmod(handle, own_mode(file.parent) & 0o666)
    finally:
        os.close(handle)


def chmod(file: int | Path, mode: int) -> None:
    """Set the mode of a file, if the file system has modes."""
    with suppress(OSError):
        os.chmod(file, mode)


def common_mode() -> int:
    """Return the mode of a new file under the present umask."""
    try:  # reading the umask with os.umask would change it for a moment, also for other threads
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        mask = int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)
    except (OSError, StopIteration, ValueError, IndexError):
        mask = os.umask(0o077)
        os.umask(mask)
    return 0o666 & ~mask


def sync(handle: int) -> None:
    """Wait until the bytes of a file are on the disk, if the file system supports it."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, if the system supports it."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # the user may write to the folder but not read it
        return
    try:
        sync(handle)
    except PermissionError:
        pass
    finally:
        os.close(handle)


def is_trusted(path: Path) -> bool:
    """Return whether no other user could have written a file or folder.

    Its owner must be this user, root or the owner of its folder. Others must not be able to write to it or its folder.
    """
    try:
        own, folder = path.stat(), path.parent.stat()
    except OSError:
        return False
    is_private = not (own.st_mode | folder.st_mode) & 0o022
    return os.name == "nt" or (is_private and own.st_uid in (os.geteuid(), 0, folder.st_uid))

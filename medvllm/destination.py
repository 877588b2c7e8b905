"""Writes results to the path that a user gives: a file, a link to a file, a device, a pipe, or `-` for standard output.

A file is replaced as a whole, and keeps its mode, owner and access list. Links are followed. Devices and pipes are
written to. A file that cannot be replaced, because it is a mount point or has other names, is written in place.
"""

import errno
import io
import os
import re
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from medvllm.errors import OutputError
from medvllm.files import UNSUPPORTED, chmod, common_mode, partial, sync, sync_folder

_DESCRIPTORS = re.compile(r"/dev/fd|/proc/(?:self|thread-self|(\d+))(?:/task/\d+)?/fd")
_HOPS = 40  # the most links to follow, as on Linux
_NO_PARTIAL = {errno.EACCES, errno.EPERM, errno.EROFS}  # no file can be created in the folder
_NOT_REPLACED = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS, *UNSUPPORTED}


def write(target: Path, content: bytes) -> None:
    """Write a result to a path.

    Args:
        target: The path, or "-" for standard output.
        content: The result.

    Raises:
        OutputError: It cannot be written. An existing file is unchanged, unless it has to be written in place and the
            disk is full or broken.
    """
    with open_output(target) as stream:
        stream.write(content)


@contextmanager
def open_output(target: Path) -> Iterator[IO[bytes]]:
    """Give a stream that writes a result to a path. After the block, the whole result is there.

    If the block raises, an existing file is unchanged, and no new file appears.

    Args:
        target: The path, or "-" for standard output.

    Raises:
        OutputError: The result cannot be written. The methods of the stream raise it, too.
    """
    with _translate_errors(target):
        place = _resolve_target(target)
        before = _status(place)
    with ExitStack() as stack:
        made = None
        if isinstance(place, Path) and (before is None or stat.S_ISREG(before.st_mode)):
            with _translate_errors(target):
                made = _try_partial(stack, place, is_there=before is not None)
        if made is None or isinstance(place, int):
            yield stack.enter_context(_open_existing(place, before, target))
            return
        handle, path = made
        with _stream(os.dup(handle), target) as stream:
            yield stream
            with _translate_errors(target):
                stream.flush()
                sync(handle)
        with _translate_errors(target):
            _publish(handle, path, place, before)


def check(target: Path) -> None:
    """Raise OutputError if a result could not be written to a path. Call it before the work that makes the result.

    It changes nothing, and the reader of a pipe does not notice it.
    """
    with _translate_errors(target):
        place = _resolve_target(target)
        status = _status(place)
        if isinstance(place, int):
            if not _is_writable(place):
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        elif status is not None and stat.S_ISREG(status.st_mode):
            os.close(os.open(target, os.O_WRONLY))
        elif not _may_write(place.parent if status is None else place):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _resolve_target(target: Path) -> Path | int:
    """Return what a path leads to: a file, which need not exist yet, or a descriptor of this process."""
    if str(target) == "-":
        if sys.stdout is None:  # the process was started without one
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return sys.stdout.fileno()
    path = os.path.abspath(target)
    for _ in range(_HOPS):
        folder, name = os.path.split(path)
        real = os.path.realpath(folder)
        for parent in (folder, real):
            found = _DESCRIPTORS.fullmatch(parent)
            if found and name.isdecimal() and found[1] in (None, str(os.getpid())):
                return int(name)
        if _DESCRIPTORS.fullmatch(real):  # of another process
            return Path(path)
        path = os.path.join(real, name)
        if not os.path.islink(path):
            return Path(path)
        _check_link(path, real)
        path = os.path.join(real, os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _check_link(path: str, folder: str) -> None:
    """Raise PermissionError for another user's link in a folder that everybody may write to, such as /tmp."""
    link, around = os.lstat(path), os.stat(folder)
    if around.st_mode & stat.S_ISVTX and around.st_mode & 0o002 and link.st_uid not in (os.geteuid(), around.st_uid):
        raise PermissionError(errno.EACCES, "it is another user's link in a folder that everybody may write to")


def _status(place: Path | int) -> os.stat_result | None:
    """Return the status of a file, or None if it does not exist. Raises OSError if nothing can be written there."""
    try:
        status = os.stat(place)
    except FileNotFoundError:
        if isinstance(place, Path) and not place.parent.is_dir():
            reason = f"there is no folder {str(place.parent)!r}"
            raise FileNotFoundError(errno.ENOENT, reason, str(place.parent)) from None
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if stat.S_ISSOCK(status.st_mode) and isinstance(place, Path):
        raise OSError(errno.ENXIO, "it is a socket")
    return status


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _is_writable(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _try_partial(stack: ExitStack, place: Path, *, is_there: bool) -> tuple[int, Path] | None:
    """Return a new file beside a file, or None if only the existing file can be written."""
    try:
        return stack.enter_context(partial(place))
    except OSError as error:
        if not (is_there and error.errno in _NO_PARTIAL):
            raise
        return None


@contextmanager
def _open_existing(place: Path | int, before: os.stat_result | None, target: Path) -> Iterator[IO[bytes]]:
    """Give a stream that writes to an existing file, device, pipe or descriptor."""
    with _translate_errors(target):
        if isinstance(place, int):
            for shown in (sys.stdout, sys.stderr):  # earlier output comes first
                with suppress(AttributeError, OSError, ValueError):
                    shown.flush()
        handle = os.dup(place) if isinstance(place, int) else os.open(place, os.O_WRONLY | os.O_NOCTTY)
    with _stream(handle, target) as stream:
        yield stream
        with _translate_errors(target):
            stream.flush()
            if isinstance(place, Path) and before is not None and stat.S_ISREG(before.st_mode):
                os.ftruncate(handle, stream.tell())
                sync(handle)


def _publish(handle: int, path: Path, place: Path, before: os.stat_result | None) -> None:
    """Replace the existing file by the finished one, or write its content into the existing one."""
    if before is None:
        chmod(handle, common_mode())
    if before is None or (before.st_nlink == 1 and _copy_owner(handle, place, before)):
        try:
            path.replace(place)
        except OSError as error:
            if before is None or error.errno not in _NOT_REPLACED:
                raise
        else:
            sync_folder(place.parent)
            return
    with path.open("rb") as source, place.open("r+b") as out:
        shutil.copyfileobj(source, out, 1 << 20)
        out.truncate()
        out.flush()
        sync(out.fileno())


def _copy_owner(handle: int, place: Path, before: os.stat_result) -> bool:
    """Copy owner, attributes and mode of the existing file to the new one. Return False if the owner cannot be."""
    if not _may_write(place):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    own = os.fstat(handle)
    if (own.st_uid, own.st_gid) != (before.st_uid, before.st_gid):
        try:
            os.chown(handle, before.st_uid, before.st_gid)
        except OSError:
            return False
    if sys.platform == "linux":
        with suppress(OSError):
            names = os.listxattr(place)
            for name in {*os.listxattr(handle), *names}:  # the folder's default access list may have added some
                with suppress(OSError):
                    if name in names:
                        os.setxattr(handle, name, os.getxattr(place, name))
                    else:
                        os.removexattr(handle, name)
    chmod(handle, stat.S_IMODE(before.st_mode))
    return True


class _Raw(io.FileIO):
    """A descriptor whose errors are OutputErrors."""

    def __init__(self, handle: int, target: Path) -> None:
        super().__init__(handle, "wb")
        self._target = target

    def write(self, content: Any) -> int:
        with _translate_errors(self._target):
            return super().write(content)


def _stream(handle: int, target: Path) -> IO[bytes]:
    return io.BufferedWriter(_Raw(handle, target), 1 << 20)


@contextmanager
def _translate_errors(target: Path) -> Iterator[None]:
    """Raise errors of the operating system as OutputError, with advice."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise OutputError(
            f"'{target}' cannot be written: {reason}.{_advice(target, error)}", path=str(target)
        ) from error


def _advice(target: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"\nCreate the folder first: mkdir -p {shlex.quote(str(error.filename or target.parent))}"
    if isinstance(error, IsADirectoryError):
        return "\nGive the name of a file."
    if isinstance(error, PermissionError):
        return f"\nSee who may write there: ls -ld {shlex.quote(str(target.parent))} {shlex.quote(str(target))}"
    return ""

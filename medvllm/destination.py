"""Writes a result to the path that a user gave: a file, a link, a device, a pipe, or `-` for standard output.

- A file is replaced atomically, and keeps its mode, owner and access list.
- A file that cannot be replaced, such as a mounted file or one with several hard links, is overwritten in place.
- A link is followed.
- A device or a pipe is written to.
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
from medvllm.files import UNSUPPORTED, chmod, common_mode, open_partial, sync, sync_folder

_DESCRIPTORS = re.compile(r"/dev/fd|/proc/(?:self|thread-self|(\d+))(?:/task/\d+)?/fd")
_HOPS = 40  # how many links are followed, as in Linux
_NO_PARTIAL = {errno.EACCES, errno.EPERM, errno.EROFS}  # no new file can be created in the folder
_NOT_REPLACED = {errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS, *UNSUPPORTED}


def write_output(target: Path, content: bytes) -> None:
    """Write a result to the path that a user gave.

    Args:
        target: The path, or `-` for standard output.
        content: The whole result.

    Raises:
        OutputError: The result cannot be written. An existing file keeps its content, unless it had to be overwritten
            in place and the disk is full or broken.
    """
    with open_output(target) as stream:
        stream.write(content)


@contextmanager
def open_output(target: Path) -> Iterator[IO[bytes]]:
    """Yield a stream for a result.

    The file appears at its path when the block ends. If the block raises an exception, an existing file stays.

    Args:
        target: The path, or `-` for standard output.

    Raises:
        OutputError: The result cannot be written. The methods of the stream raise it too.
    """
    with _translate_errors(target):
        place = _resolve_place(target)
        before = _read_status(place)
    with ExitStack() as stack:
        made = None
        if isinstance(place, Path) and (before is None or stat.S_ISREG(before.st_mode)):
            with _translate_errors(target):
                made = _try_partial(stack, place, is_there=before is not None)
        if made is None or isinstance(place, int):
            yield stack.enter_context(_open_in_place(place, before, target))
            return
        handle, path = made
        with _open_stream(os.dup(handle), target) as stream:
            yield stream
            with _translate_errors(target):
                stream.flush()
                sync(handle)
        with _translate_errors(target):
            _publish(handle, path, place, before)


def check_output(target: Path) -> None:
    """Check whether a result could be written, before the work that computes it. This changes nothing.

    Args:
        target: The path, or `-` for standard output.

    Raises:
        OutputError: The result could not be written.
    """
    with _translate_errors(target):
        place = _resolve_place(target)
        status = _read_status(place)
        if isinstance(place, int):
            if not _is_writable(place):
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        elif status is not None and stat.S_ISREG(status.st_mode):
            os.close(os.open(target, os.O_WRONLY))
        elif not _may_write(place.parent if status is None else place):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _resolve_place(target: Path) -> Path | int:
    """Return what a path leads to: a file, which need not exist, or a descriptor of this process."""
    if str(target) == "-":
        if sys.stdout is None:  # the process was started without a standard output
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
        if _DESCRIPTORS.fullmatch(real):  # a descriptor of another process
            return Path(path)
        path = os.path.join(real, name)
        if not os.path.islink(path):
            return Path(path)
        _check_link(path, real)
        path = os.path.join(real, os.readlink(path))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _check_link(path: str, folder: str) -> None:
    """Refuse another user's link in a folder such as /tmp: it could make this user overwrite any file."""
    link, around = os.lstat(path), os.stat(folder)
    if around.st_mode & stat.S_ISVTX and around.st_mode & 0o002 and link.st_uid not in (os.geteuid(), around.st_uid):
        raise PermissionError(errno.EACCES, "it is another user's link in a folder that everybody can write to")


def _read_status(place: Path | int) -> os.stat_result | None:
    """Return the status of a place, or None if nothing is there.

    Raises:
        OSError: It is a folder or a socket, or its folder does not exist.
    """
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
    """Return a new file beside a place, or None if the folder allows none and the existing file must be overwritten."""
    try:
        return stack.enter_context(open_partial(place))
    except OSError as error:
        if not (is_there and error.errno in _NO_PARTIAL):
            raise
        return None


@contextmanager
def _open_in_place(place: Path | int, before: os.stat_result | None, target: Path) -> Iterator[IO[bytes]]:
    """Yield a stream that writes to an existing file, a device, a pipe or a descriptor."""
    with _translate_errors(target):
        if isinstance(place, int):
            for shown in (sys.stdout, sys.stderr):  # keep the order of what was printed before
                with suppress(AttributeError, OSError, ValueError):
                    shown.flush()
        handle = os.dup(place) if isinstance(place, int) else os.open(place, os.O_WRONLY | os.O_NOCTTY)
    with _open_stream(handle, target) as stream:
        yield stream
        with _translate_errors(target):
            stream.flush()
            if isinstance(place, Path) and before is not None and stat.S_ISREG(before.st_mode):
                os.ftruncate(handle, stream.tell())
                sync(handle)


def _publish(handle: int, path: Path, place: Path, before: os.stat_result | None) -> None:
    """Move a complete file to its place, or copy it over a file that cannot be replaced."""
    if before is None:
        chmod(handle, common_mode())
    if before is None or (before.st_nlink == 1 and _copy_attributes(handle, place, before)):
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


def _copy_attributes(handle: int, place: Path, before: os.stat_result) -> bool:
    """Give a file the owner, attributes and mode of the file that it replaces.

    Return False if the owner cannot be set.
    """
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
            for name in {*os.listxattr(handle), *names}:  # also those that the folder's default access list added
                with suppress(OSError):
                    if name in names:
                        os.setxattr(handle, name, os.getxattr(place, name))
                    else:
                        os.removexattr(handle, name)
    chmod(handle, stat.S_IMODE(before.st_mode))
    return True


class _Raw(io.FileIO):
    """A descriptor whose errors are raised as OutputError."""

    def __init__(self, handle: int, target: Path) -> None:
        super().__init__(handle, "wb")
        self._target = target

    def write(self, content: Any) -> int:
        with _translate_errors(self._target):
            return super().write(content)


def _open_stream(handle: int, target: Path) -> IO[bytes]:
    return io.BufferedWriter(_Raw(handle, target), 1 << 20)


@contextmanager
def _translate_errors(target: Path) -> Iterator[None]:
    """Raise errors of the system as OutputError, with the next step."""
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
        return f"\nCreate its folder first: mkdir -p {shlex.quote(str(error.filename or target.parent))}"
    if isinstance(error, IsADirectoryError):
        return "\nUse the path of a file."
    if isinstance(error, PermissionError):
        return f"\nCheck the permissions: ls -ld {shlex.quote(str(target.parent))} {shlex.quote(str(target))}"
    return ""

"""Turns: one process and thread at a time, by a lock on a file."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvllm.errors import SourceError
from medvllm.files import chmod, make_own, own_mode

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def turn(file: Path, *, setting: str = "MEDVLLM_HOME", private: bool = True) -> Iterator[None]:
    """Hold a lock file while the block lasts, and wait before for whoever holds it.

    Args:
        file: The lock file; it is made, with its folder.
        setting: The variable that names the folder it lies in, for the way out.
        private: Whether it is a file of MEDVLLM_HOME, which follows no umask.

    Raises:
        SourceError: The file system has no locks.
        OSError: The file cannot be made.
    """
    from filelock import FileLock

    if private:
        make_own(file.parent)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise SourceError(
            f"{file.parent} is on a file system that has no file locks: {error.strerror}.\n"
            f"Put it on a local disk: export {setting}=/a/folder/there",
            path=str(file),
        ) from error
    if private:
        chmod(file, own_mode(file.parent) & 0o666)
    try:
        yield
    finally:
        lock.release()

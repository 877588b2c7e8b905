"""A lock on a file: one process and one thread at a time."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvllm.errors import SourceError
from medvllm.files import chmod, make_own, own_mode

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def file_lock(
    file: Path, *, setting: str | None = "MEDVLLM_HOME", private: bool = True, patience_s: float = -1
) -> Iterator[None]:
    """Hold a lock file for the duration of the block. Waits while another process or thread holds it.

    Args:
        file: The lock file. It is created, with its folder.
        setting: The variable that names its folder, for the error message; None if the user named the folder.
        private: Whether the file belongs to MEDVLLM_HOME, where the umask does not apply.
        patience_s: How long to wait while another one holds it, in seconds; -1 for as long as that takes.

    Raises:
        SourceError: The file system has no locks.
        BlockingIOError: Another one holds it, and `patience_s` is over.
        OSError: The file cannot be created.
    """
    from filelock import FileLock, Timeout

    if private:
        make_own(file.parent)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=patience_s)
    except Timeout as error:
        raise BlockingIOError(errno.EAGAIN, "another process or thread holds the lock", str(file)) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise SourceError(
            f"{file.parent} is on a file system without file locks: {error.strerror}.\n"
            f"Use a folder on a local disk{f': export {setting}=/path/to/folder' if setting else '.'}",
            path=str(file),
        ) from error
    if private:
        chmod(file, own_mode(file.parent) & 0o666)
    try:
        yield
    finally:
        lock.release()


def is_held(file: Path) -> bool:
    """Return whether another process or thread holds a lock file. Whoever may read it can ask.

    Raises:
        OSError: It cannot be read.
    """
    import fcntl

    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:  # there may be another kind of lock
        with file_lock(file, setting=None, private=False, patience_s=0):
            return False
    except BlockingIOError:
        return True
    except SourceError:
        return False

"""Errors of this machine, such as a full disk, which say nothing about a model."""

import errno

_CODES = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),
}
# Libraries raise some of these as errors of their own, which only their words tell apart.
_WORDS = (
    *("allocate memory", "failed to allocate", "bad_alloc", "bad allocation", "out of memory", "no space left"),
    " requested and ",  # NumPy: how many items it should write, and how many it has written
)


def is_shortage(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, is about memory or files: another try may succeed."""
    link: BaseException | None = error
    while link is not None:
        words = str(link).lower()
        is_code = isinstance(link, OSError) and link.errno in _CODES
        if isinstance(link, MemoryError) or is_code or any(sign in words for sign in _WORDS):
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False

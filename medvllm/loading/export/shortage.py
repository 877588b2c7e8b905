"""Errors of this machine, such as a full disk, which say nothing about a model."""

# Libraries raise some of these as errors of their own, which only their words tell apart.
_WORDS = "allocate memory", "failed to allocate", "bad_alloc", "bad allocation", "out of memory", "no space left"
_OF_MODEL = "source code"  # Python's `inspect` raises an OSError for a function without one


def is_shortage(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, is about memory or files: another try may succeed."""
    link: BaseException | None = error
    while link is not None:
        words = str(link).lower()
        is_file = isinstance(link, OSError) and _OF_MODEL not in words
        if isinstance(link, MemoryError) or is_file or any(sign in words for sign in _WORDS):
            return True
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return False

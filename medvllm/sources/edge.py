"""The edge of this room: a fault of the system that nothing inside has named leaves as one of our errors."""

import errno
import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from medvllm.errors import MedVLLMError, SourceError

P = ParamSpec("P")
R = TypeVar("R")


def edge(call: Callable[P, R]) -> Callable[P, R]:
    """Give what the system says of a file, such as that another user's may not be read, as a SourceError."""

    @functools.wraps(call)
    def translating(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except MedVLLMError:
            raise
        except OSError as error:
            raise unusable(error) from error

    return translating


def unusable(error: OSError, file: Path | None = None) -> SourceError:
    """Return the error for a file that the system does not give."""
    path = str(file or error.filename or "")
    advice = ""
    if path and error.errno in (errno.EACCES, errno.EPERM):
        advice = f"\nSee who may: ls -ld {shlex.quote(str(Path(path).parent))} {shlex.quote(path)}"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "\nMake room on its disk: medvllm cache prune"
    subject = path or "A file of the model"
    return SourceError(f"{subject} cannot be used: {error.strerror or error}.{advice}", path=path)

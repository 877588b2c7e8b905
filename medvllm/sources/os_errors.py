"""Faults of the operating system, as errors of medvllm that name the file and the way out."""

import errno
import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from medvllm.errors import MedVLLMError, SourceError

P = ParamSpec("P")
R = TypeVar("R")


def convert_os_errors(call: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function of this package, so that an OSError leaves it as a SourceError."""

    @functools.wraps(call)
    def converting(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except MedVLLMError:
            raise
        except OSError as error:
            raise to_source_error(error) from error

    return converting


def to_source_error(error: OSError, file: Path | None = None) -> SourceError:
    """Return the error for a file that the operating system refuses to open, read or write.

    Args:
        error: What the operating system said.
        file: The file, if `error` does not name it.
    """
    path = str(file or error.filename or "")
    advice = ""
    if path and error.errno in (errno.EACCES, errno.EPERM):
        advice = f"\nCheck the permissions: ls -ld {shlex.quote(str(Path(path).parent))} {shlex.quote(path)}"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "\nFree space on its disk: medvllm cache prune"
    subject = path or "A file of the model"
    return SourceError(f"{subject} cannot be used: {error.strerror or error}.{advice}", path=path)

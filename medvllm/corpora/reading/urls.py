"""Files on s3:// and the like, as far as fsspec and its file systems read them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from medvllm.errors import MedVLLMError, MissingDependencyError, RequestError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(source: object) -> bool:
    """Return whether a source is the URL of a file."""
    return isinstance(source, str) and _URL.match(source) is not None


def find_urls(pattern: str) -> list[str]:
    """Return the URLs of the files that a pattern such as s3://bucket/*.parquet names, in the order of their names.

    Raises:
        RequestError: They cannot be listed.
        MissingDependencyError: The package for this kind of URL is not installed.
    """
    system, path = _system_of(pattern)
    try:
        return [str(system.unstrip_protocol(each)) for each in sorted(system.glob(path))]
    except Exception as error:  # each file system has errors of its own
        raise _unreadable(pattern, error) from error


@contextmanager
def open_url(url: str) -> Iterator[BinaryIO]:
    """Open the file at a URL for reading.

    Raises:
        RequestError: It cannot be opened.
        MissingDependencyError: The package for this kind of URL is not installed.
    """
    system, path = _system_of(url)
    try:
        stream: BinaryIO = system.open(path, "rb")
    except Exception as error:
        raise _unreadable(url, error) from error
    with stream:
        yield stream


def _system_of(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        raise MissingDependencyError(
            f"Files on {scheme}:// need another package: {error}.\nInstall it, or copy the file to this machine first."
        ) from error
    except MedVLLMError:
        raise
    except Exception as error:
        raise _unreadable(url, error) from error
    return system, str(path)


def _unreadable(url: str, error: Exception) -> RequestError:
    reason = getattr(error, "strerror", None) or type(error).__name__
    return RequestError(f"Texts cannot be read from {url!r}: {reason}.\nCheck the URL and the credentials for it.")

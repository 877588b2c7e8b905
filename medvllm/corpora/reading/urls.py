"""Files on s3:// and the like, as far as fsspec and its file systems read them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_SET, BufferedReader, RawIOBase
from os import PathLike
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from medvllm.errors import MedVLLMError, MissingDependencyError, RequestError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_LINK = rf"::(?={_URL.pattern})"  # between the URLs of a chain, such as zip://notes.csv::https://host/notes.zip
_USER = re.compile(r"://([^/:@]*)[^/]*@")
_WEB, _QUERY_OF_WEB = ("http", "https"), re.compile(r"[?#].*", re.DOTALL)
_QUERY = re.compile(r"\?[^/?]*=.*", re.DOTALL)  # elsewhere: other names may have a hash, and a pattern a question mark
_WITH_CONTAINER = ("abfs", "abfss", "wasb", "wasbs")  # Azure: abfs://container@account.dfs.core.windows.net/notes.csv
_BUFFER = 1 << 20  # bytes


def is_url(source: object) -> bool:
    """Return whether a source is the URL of a file."""
    return isinstance(source, str) and _URL.match(source) is not None


def shown_name(source: "str | PathLike[str]") -> str:
    """Return the name of a file or folder for messages and records.

    Of a URL, the user, the password and the query are left out: they may be all that one needs to read the file.
    """
    return "::".join(_named_by(source)) if isinstance(source, str) and is_url(source) else str(source)


def ending_of(url: str) -> str:
    """Return the ending of the name of the file at a URL, in small letters. Its query is no part of the name."""
    return PurePosixPath(_named_by(url)[0]).suffix.lower()


def is_pattern(url: str) -> bool:
    """Return whether a URL stands for several files. Signs in its query, or a password, do not make it a pattern."""
    return any(sign in link for link in _named_by(url) for sign in "*?[")


def _named_by(url: str) -> list[str]:
    """Return the URLs of a chain, mostly one, without user, password and query."""
    return [*map(_without_secrets, re.split(_LINK, url))]


def _without_secrets(url: str) -> str:
    scheme = url.partition("://")[0].lower()
    named = _USER.sub(r"://\1@" if scheme in _WITH_CONTAINER else "://", url)
    return (_QUERY_OF_WEB if scheme in _WEB else _QUERY).sub("", named)


def find_urls(pattern: str) -> list[str]:
    """Return the URLs of the files that a pattern such as s3://bucket/*.parquet names, in the order of their names.

    Raises:
        RequestError: They cannot be listed.
        MissingDependencyError: The package for this kind of URL is not installed.
    """
    system, path = _system_of(pattern)
    with _translated(pattern):
        return [str(system.unstrip_protocol(each)) for each in sorted(system.glob(path))]


@contextmanager
def open_url(url: str) -> Iterator[BinaryIO]:
    """Open the file at a URL for reading.

    Raises:
        RequestError: It cannot be opened; also while it is read.
        MissingDependencyError: The package for this kind of URL is not installed.
    """
    system, path = _system_of(url)
    with _translated(url):
        stream = system.open(path, "rb")
    with stream, BufferedReader(_Stream(stream, url), _BUFFER) as buffered:
        yield buffered


class _Stream(RawIOBase):
    """A file of fsspec as Python's own ones are, with errors of ours: each file system has other methods and errors."""

    def __init__(self, stream: Any, url: str) -> None:
        self._stream, self._url = stream, url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        with _translated(self._url):
            read = self._stream.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        with _translated(self._url):
            self._stream.seek(offset, whence)
        return self.tell()

    def tell(self) -> int:
        return int(self._stream.tell())


def _system_of(url: str) -> tuple[Any, str]:
    with _translated(url):
        try:
            from fsspec.core import url_to_fs

            system, path = url_to_fs(url)
        except ImportError as error:
            scheme = url.partition("://")[0]
            raise MissingDependencyError(
                f"Files on {scheme}:// need another package: {error}.\n"
                "Install it, or copy the file to this machine first."
            ) from error
    return system, str(path)


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Raise RequestError for whatever error a file system has: each has some of its own."""
    try:
        yield
    except MedVLLMError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        shown = shown_name(url)
        raise RequestError(
            f"Texts cannot be read from {shown!r}: {reason}.\n"
            "Check the URL and the credentials for it, or copy the file to this machine first."
        ) from (error if shown == url else None)  # it may have the password in it

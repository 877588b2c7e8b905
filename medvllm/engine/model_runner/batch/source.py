"""What a batch reads: files, folders and URLs, one after the other."""

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.corpus import open_rows
from medvllm.corpora.reading.dataset_rows import is_dataset
from medvllm.corpora.reading.notes import find_notes
from medvllm.corpora.reading.urls import find_urls, is_pattern, is_url, shown_name
from medvllm.corpora.rows import BadRow, Row
from medvllm.errors import RequestError

_LOG = logging.getLogger(__name__)
_SIGNS = "*?["


@dataclass(frozen=True)
class Source:
    """The rows of a corpus, which can be read several times.

    Attributes:
        names: Files, folders and URLs.
        columns: The columns to read.
        format: Their format; None if the ending of each name says it.
    """

    names: tuple[str, ...]
    columns: Columns
    format: str | None = None

    def rows(self) -> Iterator[Row | BadRow]:
        """Yield the rows.

        Raises:
            RequestError: A file cannot be read.
        """
        for _, rows in self.each():
            yield from rows

    def each(self, *, warns: bool = False) -> Iterator[tuple[int, Iterator[Row | BadRow]]]:
        """Yield the position of each name, and its rows. They must be read before the next one.

        Args:
            warns: Whether the log says what is left out.

        Raises:
            RequestError: A file cannot be read.
        """
        for position, name in enumerate(self.names):
            with open_rows(name, self.columns, self.format) as found:
                if warns and found.warning is not None:
                    _LOG.warning(found.warning)
                yield position, found.rows

    @property
    def shown_names(self) -> list[str]:
        """The names for messages and records: URLs are without passwords and signatures."""
        return [*map(shown_name, self.names)]


def find_names(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the files, folders and URLs that are meant. A pattern such as notes/*.parquet stands for several files.

    Raises:
        RequestError: There is no such file, or one is named twice.
    """
    names = [name for pattern in patterns for name in _expand(pattern)]
    seen: set[str] = set()
    for name in names:
        files = _files_of(name) if len(names) > 1 else ()
        for file in files:
            if file in seen:
                what = repr(shown_name(name)) if file == name else f"{file!r}, which {name!r} means,"
                raise RequestError(f"{what} is to be read twice, so its answers would be there twice.\nName it once.")
            seen.add(file)
    return tuple(names)


def _is_folder_of_notes(name: str) -> bool:
    return not is_url(name) and (path := Path(name)).is_dir() and not is_dataset(path)


def _files_of(name: str) -> Iterable[str]:
    """Return the real paths of what a name means. A URL is one as it is written."""
    if is_url(name):
        return (name,)
    if _is_folder_of_notes(name):
        return [os.path.realpath(os.path.join(name, note)) for note in find_notes(Path(name)).names]
    return (os.path.realpath(name),)


def _expand(pattern: str) -> Sequence[str]:
    if pattern == "-":
        raise RequestError(
            "A batch reads its input again when it goes on, which it cannot do with standard input.\n"
            "Write the texts to a file first, or use: medvllm run NAME"
        )
    if is_url(pattern):
        found = find_urls(pattern) if is_pattern(pattern) else [pattern]
    elif any(sign in pattern for sign in _SIGNS) and not Path(pattern).exists():
        found = sorted(glob.glob(pattern, recursive=True))
    else:
        found = [pattern]
    if not found:
        advice = "Check the URL and the credentials for it." if is_url(pattern) else f"Look with: ls -d -- {pattern}"
        raise RequestError(f"There is no file {shown_name(pattern)!r}.\n{advice}")
    return found

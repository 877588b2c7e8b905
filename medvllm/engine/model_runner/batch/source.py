"""What a batch reads: files, folders and URLs, one after the other."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.corpus import open_rows
from medvllm.corpora.reading.urls import find_urls, is_url
from medvllm.corpora.rows import BadRow, Row
from medvllm.errors import RequestError

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
        for name in self.names:
            with open_rows(name, self.columns, self.format) as found:
                yield from found.rows


def find_names(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the files, folders and URLs that are meant. A pattern such as notes/*.parquet stands for several files.

    Raises:
        RequestError: There is no such file, or one is named twice.
    """
    names: list[str] = []
    for pattern in patterns:
        names += _expand(pattern)
    if repeated := next((name for at, name in enumerate(names) if name in names[:at]), None):
        raise RequestError(f"{repeated!r} is to be read twice, so its answers would be there twice.\nName it once.")
    return tuple(names)


def _expand(pattern: str) -> Sequence[str]:
    if pattern == "-":
        raise RequestError(
            "A batch reads its input again when it goes on, which it cannot do with standard input.\n"
            "Write the texts to a file first, or use: medvllm run NAME"
        )
    if is_url(pattern):
        found = find_urls(pattern) if any(sign in pattern for sign in _SIGNS) else [pattern]
    elif any(sign in pattern for sign in _SIGNS) and not Path(pattern).exists():
        found = sorted(glob.glob(pattern, recursive=True))
    else:
        found = [pattern]
    if not found:
        raise RequestError(f"There is no file {pattern!r}.\nLook with: ls -d -- {pattern}")
    return found

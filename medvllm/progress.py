"""Progress bars for long tasks. They appear on stderr, and only if it is a terminal."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_WORTH_SHOWING = 200_000_000  # bytes; a smaller task ends before anybody can read the bar


def is_terminal(stream: object) -> bool:
    """Return whether a stream is an open terminal."""
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False


@contextmanager
def track_bytes(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar, and yield a function that advances it by a number of bytes.

    Args:
        description: The text before the bar.
        total: The number of bytes of the whole task.
    """
    if total < _WORTH_SHOWING or not is_terminal(sys.stderr):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)


def track_items(description: str, items: Sequence[T]) -> Iterator[T]:
    """Yield the items one by one, with a progress bar if there are at least two."""
    if len(items) < 2 or not is_terminal(sys.stderr):
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=description, console=Console(stderr=True), transient=True)

"""Progress bars for long tasks. They appear on stderr, and only if it is a terminal."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

_is_inside = ContextVar("_is_inside", default=False)  # another bar, of which this work is a part
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


@contextmanager
def track_texts(description: str, total: int | None) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar for a corpus, with the number of texts, their rate and the time that remains.

    Bars of `track_items` do not appear meanwhile.

    Args:
        description: The text before the bar.
        total: How much there is to read, in any unit; None if nobody knows.

    Yields:
        A function that takes how much was read so far, and how many texts are answered.
    """
    if not is_terminal(sys.stderr):
        yield lambda done, texts: None
        return
    from time import monotonic

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    shown = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[texts]}"), TimeRemainingColumn()
    begun = monotonic()
    token = _is_inside.set(True)
    try:
        with Progress(*shown, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total, texts="")

            def advance(done: int, texts: int) -> None:
                rate = texts / max(monotonic() - begun, 0.001)
                bar.update(task, completed=done, texts=f"{texts:,} texts, {rate:,.1f}/s")

            yield advance
    finally:
        _is_inside.reset(token)


def track_items(description: str, items: Sequence[T]) -> Iterator[T]:
    """Yield the items one by one, with a progress bar if there are at least two."""
    if len(items) < 2 or _is_inside.get() or not is_terminal(sys.stderr):
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, description=description, console=Console(stderr=True), transient=True)

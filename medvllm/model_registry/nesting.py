"""Whether a thread is inside a load: a model's own class may load other models."""

import contextlib
import threading
from collections.abc import Iterator


class Nesting(threading.local):
    """How deep the calling thread is inside loads of a session."""

    depth = 0

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Mark the thread as inside a load."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

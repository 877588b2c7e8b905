"""Log messages that wait until a lock is free."""

import logging
from collections import deque
from contextlib import suppress


class DeferredLog:
    """Collects messages under a lock and logs them later: a log handler may call the code that holds the lock."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._messages: deque[tuple[int, str]] = deque()

    def add(self, level: int, message: str) -> None:
        """Add a message."""
        self._messages.append((level, message))

    def flush(self) -> None:
        """Log the messages so far. The caller must not hold the lock."""
        while self._messages:
            with suppress(IndexError):  # another thread was first
                self._logger.log(*self._messages.popleft())

    def clear(self) -> None:
        """Drop the messages so far."""
        self._messages.clear()

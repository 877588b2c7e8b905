"""Warnings of workers that have no standard error here. None of them has a text of a row."""

import logging
from collections.abc import Iterable
from typing import NamedTuple


class Warned(NamedTuple):
    """A warning, as it is sent from one process to another."""

    logger: str
    level: int
    message: str


class Warnings(logging.Handler):
    """Keeps the warnings of medvllm in this process until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._found: list[Warned] = []
        logging.getLogger("medvllm").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self._found.append(Warned(record.name, record.levelno, record.getMessage()))

    def take(self) -> list[Warned]:
        """Return the warnings since the last time."""
        found, self._found = self._found, []
        return found


class ToldOnce:
    """Logs the warnings of several workers, equal ones once."""

    def __init__(self) -> None:
        self._told: set[Warned] = set()

    def log(self, warnings: Iterable[Warned]) -> None:
        """Log those that no worker has told before."""
        for warning in warnings:
            if warning not in self._told:
                self._told.add(warning)
                logging.getLogger(warning.logger).log(warning.level, "%s", warning.message)

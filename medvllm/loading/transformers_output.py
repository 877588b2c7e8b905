"""What transformers writes to stderr: hidden where the registry checks the same itself."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.utils import logging as transformers_logging


@contextmanager
def hide_log() -> Iterator[None]:
    """Hide what transformers logs in this thread, except for errors. Other threads keep their log."""
    me = threading.get_ident()

    def is_shown(record: logging.LogRecord) -> bool:
        return record.thread != me or record.levelno >= logging.ERROR

    handlers = list(logging.getLogger("transformers").handlers)
    for handler in handlers:
        handler.addFilter(is_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_shown)


@contextmanager
def hide_output() -> Iterator[None]:
    """Hide the log and, unless stderr is a terminal, the progress bar. On a terminal the bar is removed at its end."""

    def only_on_a_terminal(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*args, **{"disable": None, "leave": False} | kwargs)

    hook = transformers_logging.set_tqdm_hook(only_on_a_terminal)
    try:
        with hide_log():
            yield
    finally:
        transformers_logging.set_tqdm_hook(hook)

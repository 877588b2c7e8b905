"""A limit on the steps of a template: it comes with a model, and may loop without end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_FILE = "<template>"  # what Jinja calls the file of a template that was made from a text


class TooManyStepsError(Exception):
    """A template ran more steps than it may."""


@contextmanager
def limit_template_steps(most: int) -> Iterator[None]:
    """Raise TooManyStepsError in this thread once templates of Jinja have run more than `most` lines of code."""
    steps = 0

    def trace_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        if steps > most:
            raise TooManyStepsError
        return trace_line

    def trace_call(frame: FrameType, event: str, argument: Any) -> Any:
        return trace_line if frame.f_code.co_filename == _FILE else None

    before = sys.gettrace()
    sys.settrace(trace_call)
    try:
        yield
    finally:
        sys.settrace(before)

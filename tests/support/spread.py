"""Which of many cases of one kind run in every run."""

from collections.abc import Iterable
from typing import Any

import pytest


def spread(cases: Iterable[Any], step: int) -> list[Any]:
    """Return cases for `parametrize`: each `step`-th one runs in every run, and the others in the slow one only.

    Args:
        cases: The cases; tuples for several arguments.
        step: One of how many runs in every run.
    """
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if at % step == 0 else pytest.mark.slow)
        for at, case in enumerate(cases)
    ]

"""Panics of Rust libraries. They are no `Exception`, so a program's own `except Exception` would miss them."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def raise_as_errors() -> Iterator[None]:
    """Raise a panic of tokenizers or safetensors as a RuntimeError, like any other failure of a library."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # KeyboardInterrupt and SystemExit pass
            raise
        lines = str(error).strip().splitlines()
        raise RuntimeError(f"a panic: {lines[0][:300] if lines else ''}") from error

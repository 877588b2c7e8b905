"""Panics of Rust libraries: no Exception, so that a program's own `except Exception` would not see them."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def caught() -> Iterator[None]:
    """Have a panic of tokenizers or safetensors be a RuntimeError, as any other failure of a library is."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # others are Ctrl-C and the program's end
            raise
        lines = str(error).strip().splitlines()
        raise RuntimeError(f"a panic: {lines[0][:300] if lines else ''}") from error

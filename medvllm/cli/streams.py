"""Makes standard streams safe: a closed or limited stream must not lose a result or print a traceback."""

import contextlib
import os
import sys


def prepare() -> None:
    """Replace closed streams by the null device, and escape characters that a stream cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Write out what was printed, so that a full disk is an error of the command."""
    sys.stdout.flush()


def close() -> None:
    """Flush the streams now: an error at the end of the interpreter would print a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def encodes(text: str) -> bool:
    """Return whether standard output can encode a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return False
    return True


def shows_color() -> bool:
    """Return whether a terminal is asked for colours and bold type."""
    return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def write_utf8(text: str) -> None:
    """Print the content of a UTF-8 file, whatever the encoding of the terminal."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    buffer.write(text.encode("utf-8"))


def say(text: str) -> None:
    """Print a line to standard error, if possible."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")

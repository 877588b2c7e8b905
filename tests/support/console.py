"""The command line in this process, with streams of any kind."""

import io
import logging
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from medvllm.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


class Plain:
    """A stream as programs put in place of their own: it has `write` and nothing more."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        """Keep a text."""
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def command(patch: pytest.MonkeyPatch, *arguments: str, stdin: bytes | None = b"", **streams: Any) -> Outcome:
    """Run a command; `stdout` and `stderr` may be other streams, or None for a closed one."""
    out, err = (
        streams.get(name, io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n"))
        for name in ("stdout", "stderr")
    )
    with patch.context() as patched:
        patched.setattr(sys, "argv", ["medvllm", *arguments])
        patched.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        patched.setattr(sys, "stdout", out)
        patched.setattr(sys, "stderr", err)
        patched.setattr(logging, "raiseExceptions", True)
        with pytest.raises(SystemExit) as ended:
            main()
        for given, name in ((stdin, "stdin"), (out, "stdout"), (err, "stderr")):
            if given is None:
                getattr(sys, name).close()
    code = ended.value.code
    return Outcome(code if isinstance(code, int) else 0, _written(out), _written(err))


def _written(stream: Any) -> str:
    if stream is None:
        return ""
    if isinstance(stream, io.TextIOWrapper):
        stream.flush()
        content = stream.buffer
        return content.getvalue().decode(stream.encoding, "replace") if isinstance(content, io.BytesIO) else ""
    return str(stream.getvalue()) if isinstance(stream, io.StringIO) else str(getattr(stream, "text", ""))

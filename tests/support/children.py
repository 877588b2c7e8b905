"""Processes of the tests' own, which see the same home and catalogue."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program and return how it went."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def out(code: str, **environment: str) -> str:
    """Run a program that must succeed, and return what it prints."""
    run = python(code, **environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@contextmanager
def held(code: str) -> "Iterator[subprocess.Popen[str]]":
    """A program that is told lines and answers with lines; it ends with its input, or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def asked(process: "subprocess.Popen[str]", line: str) -> str:
    """Tell a program a line and return its answer."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().rstrip("\n")


def together(codes: Iterable[str]) -> list[tuple[int, str, str]]:
    """Run programs at once, from the same moment on; return exit status, output and errors of each."""
    gate = "import sys; print('ready', flush=True); sys.stdin.readline()\n"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", f"import medvllm.registry, medvllm.catalog.sql\n{gate}{code}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code in codes
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [(process, *process.communicate(timeout=120)) for process in processes]
    return [(process.returncode, output, errors) for process, output, errors in ended]

"""Processes of the tests' own, which see the same home and catalogue."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.support import warm


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program and return how it went."""
    return warm.run("-W", "error", "-c", code, **environment)


def out(code: str, **environment: str) -> str:
    """Run a program that must succeed, and return what it prints."""
    run = python(code, **environment)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@contextmanager
def held(code: str) -> Iterator[warm.Conversation]:
    """A program that is told lines and answers with lines; it ends with its input, or is killed."""
    process = warm.Conversation(code)
    try:
        yield process
    finally:
        process.kill()


def asked(process: warm.Conversation, line: str) -> str:
    """Tell a program a line and return its answer."""
    return process.ask(line)


# It has everything imported, and forks a process for each program; they begin when all are there.
_TOGETHER = """
import json, os, sys, tempfile, traceback
import alembic.command, alembic.config, psycopg
import medvllm.catalog.sql.check, medvllm.catalog.sql.transaction, medvllm.model_registry
reading, writing = os.pipe()
begun = []
for code in json.load(sys.stdin):
    files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        for stream, file in zip((1, 2), files):
            os.dup2(file.fileno(), stream)
        os.read(reading, 1)
        status = 1
        try:
            exec(code, {})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)
    begun.append((pid, files))
os.close(writing)
ended = []
for pid, files in begun:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ended.append((status, *(file.seek(0) or file.read() for file in files)))
json.dump(ended, sys.stdout)
"""


def together(codes: Iterable[str]) -> list[tuple[int, str, str]]:
    """Run programs at once, from the same moment on; return exit status, output and errors of each."""
    run = warm.run("-c", _TOGETHER, stdin=json.dumps([*codes]))
    assert run.returncode == 0, run.stderr
    return [(status, output, errors) for status, output, errors in json.loads(run.stdout)]

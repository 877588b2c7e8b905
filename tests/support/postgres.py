"""A throw-away PostgreSQL, started by the server's own programs: one a test session, an empty database a test."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

USER = "medvllm"
_NEEDED_BYTES = 2 << 30


def programs() -> Path | None:
    """Return the folder of the newest server on this machine."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: float(file.parts[4]))
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).parent if found else None


def _in_memory() -> Path | None:
    """Return a folder in memory with room enough, where files are made and removed at a fraction of a disk's cost."""
    folder = Path("/dev/shm")
    has_room = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > _NEEDED_BYTES
    return folder if has_room else None


class Postgres:
    """A server on a free port of 127.0.0.1, without sockets elsewhere; as a context, it is started and removed."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="medvllm-postgres-", dir=_in_memory()))
        self._databases = count(1)
        # The server refuses to run as root; Debian's package brings a user for it.
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._server: subprocess.Popen[bytes] | None = None
        self._own: psycopg.Connection[Any] | None = None  # makes and drops the databases

    def __enter__(self) -> "Postgres":
        # Sorted as people do, not by code point: what the catalogue asks for must be asked for.
        language = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
        self._run("initdb", "--no-sync", "--auth=trust", f"--username={USER}", *language, "-D", "data")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = ("-D", "data", "-F", "-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "max_connections=200")
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [self._programs / "postgres", *options], cwd=self._folder, stdout=log, stderr=log, **self._as
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self._own = psycopg.connect(self.url(), connect_timeout=5, autocommit=True)
                return
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server at once: clients lose their connections."""
        if self._own is not None:
            self._own.close()
            self._own = None
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(60)
            self._server = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A while without the server; afterwards it answers at the same address."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The address of a new database, which is dropped afterwards with all connections to it."""
        name = f"test_{next(self._databases)}"
        # Copying the files takes half the time of writing each page to the log.
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield self.url(name)
        finally:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        assert self._own is not None
        self._own.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        run = subprocess.run(
            [self._programs / program, *arguments], cwd=self._folder, capture_output=True, text=True, **self._as
        )
        if run.returncode:
            raise RuntimeError(run.stdout + run.stderr)

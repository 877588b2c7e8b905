"""PgBouncer before the tests' PostgreSQL: it gives each transaction whatever connection is free."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.support.postgres import USER, Postgres


def program() -> str | None:
    """Return the program, where it is installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class PgBouncer:
    """A pooler with transaction pooling and two connections; as a context, it is started and removed."""

    def __init__(self, program: str, server: Postgres) -> None:
        self._program, self._server = program, server
        self._folder = Path(tempfile.mkdtemp(prefix="medvllm-pgbouncer-"))
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:  # it refuses to run as root
            user = pwd.getpwnam("postgres")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        (self._folder / "users").write_text(f'"{USER}" ""\n')
        (self._folder / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self._folder}/users\nadmin_users = {USER}\n"
            "pool_mode = transaction\ndefault_pool_size = 2\n"
        )
        if self._as:
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, self._as["user"], self._as["group"])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "PgBouncer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def url(self, url: str) -> str:
        """Return the address of a database of the server, by way of this."""
        return url.replace(f":{self._server.port}/", f":{self.port}/")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-q", self._folder / "ini"], stdout=log, stderr=log, **self._as
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url(self._server.url()), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop it at once: clients lose their connections."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

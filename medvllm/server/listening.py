"""The socket of a server, and who has its port if it is taken."""

import errno
import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path

from medvllm.errors import SettingError

_BACKLOG = 2048  # connections that wait, also while models are loaded at the start
_PROC = Path("/proc")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: An address of this machine, or a name for one.
        port: The port; 0 for any free one.

    Raises:
        SettingError: The address is not one of this machine, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise SettingError(f"{host!r} is no address.\nTo serve this machine only: --host 127.0.0.1") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SettingError(_why(error, host, port)) from None
    listener.set_inheritable(False)
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach a socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listener: socket.socket, scheme: str) -> str:
    """Return the URL of the server of a socket."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def local_url_of(listener: socket.socket) -> str:
    """Return the URL at which this machine reaches the server of a socket, without TLS."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host.partition("%")[0]).is_unspecified:
        return f"http://{'[::1]' if ':' in host else '127.0.0.1'}:{port}"
    return url_of(listener, "http")


def _why(error: OSError, host: str, port: int) -> str:
    other = f"--port {port + 1 if 0 < port < 65535 else 8000}"
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host!r} is taken by {_owner_of(port)}.\nTo use another one: {other}"
    if error.errno == errno.EACCES:
        return f"This user may not listen on port {port}.\nTo use another one: --port 8000"
    return f"{host!r} is no address of this machine.\nTo serve this machine only: --host 127.0.0.1"


def _owner_of(port: int) -> str:
    """Return the process that listens on a port, as far as this user may know it."""
    inodes = {f"socket:[{inode}]" for name in ("tcp", "tcp6") for inode in _listening(_PROC / "net" / name, port)}
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # a process that has ended, or is another user's
            if any(os.readlink(link) in inodes for link in (folder / "fd").iterdir()):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                names = [os.path.basename(word.decode(errors="replace")) for word in words[:4] if word]
                shown = "medvllm serve" if "serve" in names and "medvllm" in names else (folder / "comm").read_text()
                return f"process {folder.name} ({shown.strip()})"
    return "a process of another user"


def _listening(file: Path, port: int) -> list[str]:
    """Return the inodes of the sockets that listen on a port, from one of the kernel's tables."""
    try:
        rows = [line.split() for line in file.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]

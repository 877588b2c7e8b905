"""The client for one thread, which asks a server on this machine with little to import."""

from urllib.parse import urlsplit

from medvllm.client.address import choose_url, is_here
from medvllm.client.client import Client
from medvllm.client.connection import Connection
from medvllm.client.local_connection import LocalConnection


class LocalClient(Client):
    """A client of a server on this machine that has no TLS. One thread may use it."""

    def _connect(self) -> Connection:
        return LocalConnection(self._options)


def client_of_command(url: str) -> Client:
    """Return the client with which a command asks a server. SettingError: the address or the key cannot be used."""
    chosen = choose_url(url)
    return LocalClient(chosen) if urlsplit(chosen).scheme == "http" and is_here(chosen) else Client(chosen)

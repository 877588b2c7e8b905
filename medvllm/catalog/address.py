"""The URL of a PostgreSQL database: several hosts, any libpq parameter, and its secrets are never shown."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote

from medvllm import settings
from medvllm.errors import SettingError

_FORM = "Write it as: postgresql://user:password@host:5432/database, and @ : / ? % in a password as %40 %3A %2F %3F %25"
_HOST = r"(?:\[([^\[\]]*)\]|([^\[\]:]*))(?::(\d*))?"


@dataclass(frozen=True)
class Address:
    """The decoded parts of a URL."""

    user: str | None
    password: str | None = field(repr=False)
    hosts: tuple[tuple[str, str], ...]  # each with its port, "" for the default
    database: str | None
    parameters: dict[str, str] = field(repr=False, hash=False)

    @classmethod
    def of(cls, url: str) -> "Address":
        """Return the parts of a URL, or raise SettingError if it is not valid."""
        rest, _, query = url.partition("://")[2].partition("?")
        place, _, database = rest.partition("/")
        credentials, at, hosts = place.rpartition("@")
        if not at and "@" in database + query.partition("=")[0]:
            raise wrong(url, "has special characters in its password that are not escaped")
        if query and not all("=" in pair for pair in query.split("&")):
            raise wrong(url, "has a parameter without a value")
        user, colon, password = credentials.partition(":")
        try:
            parameters = dict(_parameters(query))
            places = tuple(_host(url, text) for text in hosts.split(",")) if hosts else ()
            for name in ("host", "port"):  # the parameters may have both lists
                if places and name in parameters:
                    raise wrong(url, f"has a {name} both before and after the question mark")
            return cls(
                unquote(user, errors="strict") or None,
                unquote(password, errors="strict") if colon else None,
                places,
                unquote(database, errors="strict") or None,
                parameters,
            )
        except UnicodeError:
            raise wrong(url, "has bytes that are not UTF-8") from None

    @property
    def shown(self) -> str:
        """The URL without its secrets."""
        user = "" if self.user is None else quote(self.user, safe="")
        user += "" if self.password is None else ":***"
        places = (
            (f"[{host}]" if ":" in host else quote(host, safe="")) + (port and f":{port}") for host, port in self.hosts
        )
        parameters = "&".join(
            f"{quote(name)}={'***' if settings.is_secret(name) else quote(value, safe='/=,:-')}"
            for name, value in self.parameters.items()
        )
        return (
            f"postgresql://{user}{'@' if user else ''}{','.join(places)}"
            f"{f'/{quote(self.database)}' if self.database else ''}{parameters and f'?{parameters}'}"
        )

    def arguments(self) -> dict[str, str]:
        """Return the parts by the keywords of libpq."""
        stated = {"user": self.user, "password": self.password, "dbname": self.database}
        if self.hosts:
            stated["host"] = ",".join(host for host, _ in self.hosts)
            if any(port for _, port in self.hosts):
                stated["port"] = ",".join(port for _, port in self.hosts)
        return {**{name: value for name, value in stated.items() if value is not None}, **self.parameters}

    def without_secrets(self, text: str) -> str:
        """Return a text, such as an error of libpq, with the secrets of this URL replaced."""
        secrets = [self.password, *(value for name, value in self.parameters.items() if settings.is_secret(name))]
        for secret in filter(None, secrets):
            for form in (secret, quote(secret, safe="")):
                text = text.replace(form, "***") if len(form) > 2 else text  # not each one or two letters
        return text


def wrong(url: str, why: str) -> SettingError:
    """Return the error for a URL that is not valid; `why` completes the sentence."""
    return SettingError(
        f"The catalogue's URL ({settings.CATALOG.name}) {why}.\n{_FORM}",
        setting=settings.CATALOG.name,
        value=settings.without_password(url),
    )


def _parameters(query: str) -> Iterator[tuple[str, str]]:
    hosts, ports = [], []
    for name, value in parse_qsl(query, keep_blank_values=True, errors="strict"):
        if name == "host" and not value.startswith("/") and value.count(":") == 1:  # SQLAlchemy writes several hosts so
            value, _, port = value.partition(":")
            ports.append(port)
        if name == "host":
            hosts.append(value)
        else:
            yield name, value
    if hosts:
        yield "host", ",".join(hosts)
    if ports:
        yield "port", ",".join(ports)


def _host(url: str, text: str) -> tuple[str, str]:
    found = re.fullmatch(_HOST, text)
    if found is None or not 0 < int(found[3] or 1) < 2**16:
        raise wrong(url, "has an invalid host or port")
    return unquote(found[1] or found[2] or "", errors="strict"), found[3] or ""

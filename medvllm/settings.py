"""One table of the MEDVLLM_* variables: name, default, parser and help. Each is read when it is used."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from medvllm.errors import SettingError
from medvllm.quantities import parse_budget, parse_duration

T = TypeVar("T")

_SECRET = re.compile(
    r"(?<=://)([^/?#@:\s]*:).*(?=@)|(?<=http://)[^/?#@:\s]+(?=@)|(?<=https://)[^/?#@:\s]+(?=@)"
    r"|((?:^|[?&;\s])[^=&;\s]*(?:passw|passphrase|pwd|token|secret|key|sig|cred|auth)[^=&;\s]*=)[^&;\s]*",
    re.IGNORECASE,
)

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True)
class Setting(Generic[T]):
    """A variable of the environment. Calling it gives the parsed value of the moment."""

    name: str
    default: str
    parse: Callable[[str], T]
    help: str

    def __call__(self) -> T:
        text = os.environ.get(self.name, "").strip() or self.default
        try:
            return self.parse(text)
        except ValueError as error:
            shown = without_password(text)
            raise SettingError(
                f"Setting {self.name} is {shown!r}, which is {error}.\nUnset it, or: export {self.name}={self.default}",
                setting=self.name,
                value=shown,
            ) from error


class Texts:
    """The texts of a few settings as the environment has them, to tell cheaply whether one has changed.

    It is part of every hit. `os.environ` encodes the name and decodes the value of each variable it is asked for; what
    it keeps them in needs neither.
    """

    def __init__(self, *settings: Setting[Any]) -> None:
        kept = getattr(os.environ, "_data", None)
        self._kept: Mapping[Any, Any] = os.environ if kept is None else kept
        self._names = [s.name if kept is None else os.environ.encodekey(s.name) for s in settings]

    def __call__(self) -> tuple[Any, ...]:
        return tuple(map(self._kept.get, self._names))


def without_password(text: str) -> str:
    """Return a URL as it may be shown and kept: no password, no token as the user's name, no secret in its query."""
    return _SECRET.sub(lambda found: f"{found[1] or found[2] or ''}***", text)


def _switch(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ValueError("neither on nor off")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 86_400:
        raise ValueError("not a number of seconds above 0")
    return seconds


def _count(text: str) -> int | None:
    if text.lower() == "none":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("not a number of models above 0")
    return int(text)


def _keep_alive(text: str) -> float | None:
    return None if text.lower() == "none" else parse_duration(text)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except (RuntimeError, OSError):
        raise ValueError("not a path that can be found") from None


def _catalog(text: str) -> Path | str | None:
    if text.lower() == "auto":
        return None
    scheme, separator, rest = text.partition("://")
    if not separator and text.startswith(("/", "./", "../", "~/")):  # another word is a slip, not a file's name
        return _path(text)
    if scheme.lower() in ("postgresql", "postgres", "postgresql+psycopg") and rest:
        return f"postgresql://{rest}"
    if scheme.lower() == "sqlite" and rest.startswith("/") and rest.strip("/"):
        return _path(rest.removeprefix("/"))
    raise ValueError("neither postgresql://user@host/database nor a path such as /srv/catalog.db")


HOME = Setting("MEDVLLM_HOME", "~/.medvllm", _path, "Folder for what medvllm itself keeps, such as converted weights.")
CATALOG = Setting(
    "MEDVLLM_CATALOG",
    "auto",
    _catalog,
    "Database of the stored catalogue: a SQLite file, or postgresql://user@host/database; auto: "
    "catalog.db in MEDVLLM_HOME.",
)
HISTORY_LOADS = Setting(
    "MEDVLLM_HISTORY_LOADS", "off", _switch, "Whether the history also keeps which model was loaded, and its receipt."
)
DIRECT = Setting(
    "MEDVLLM_DIRECT",
    "on",
    _switch,
    "Whether a name that is not registered may be loaded directly from the Hub or a folder.",
)
DEVICE = Setting(
    "MEDVLLM_DEVICE",
    "cpu",
    str,
    "Device when none is given: cpu, cuda, cuda:1, mps, or auto (the first accelerator there is).",
)
DTYPE = Setting(
    "MEDVLLM_DTYPE",
    "auto",
    str,
    "Weights' dtype when none is given: float32, bfloat16, float16, or auto (the checkpoint's own).",
)
HUB_TIMEOUT = Setting(
    "MEDVLLM_HUB_TIMEOUT", "5", _seconds, "Seconds to wait for the Hub to accept a connection before giving up."
)
LOCK = Setting("MEDVLLM_LOCK", "medvllm.lock", _path, "The lock file that loads are checked against, if it is there.")
REQUIRE_LOCK = Setting("MEDVLLM_REQUIRE_LOCK", "off", _switch, "Whether only models of the lock file may be loaded.")
TRUST_REMOTE_CODE = Setting(
    "MEDVLLM_TRUST_REMOTE_CODE",
    "off",
    _switch,
    "Whether a repository's own code may run, for entries that pin its commit with trust_remote_code.",
)
BUDGET = Setting(
    "MEDVLLM_BUDGET",
    "auto",
    parse_budget,
    "Bytes of models by device, such as cpu=8GB,cuda:0=20GB; auto: three quarters of the machine's or cgroup's memory, "
    "nine tenths of a GPU's.",
)
MAX_MODELS = Setting("MEDVLLM_MAX_MODELS", "none", _count, "How many models may be in memory, beside their bytes.")
KEEP_ALIVE = Setting(
    "MEDVLLM_KEEP_ALIVE",
    "none",
    _keep_alive,
    "How long an idle model stays: 10m, seconds, 0 (until released), negative (pinned), none (while there is room).",
)
ROOM_TIMEOUT = Setting("MEDVLLM_ROOM_TIMEOUT", "30", _seconds, "Seconds that a load waits for room that is in use.")
DEBUG = Setting("MEDVLLM_DEBUG", "off", _switch, "Whether the command line shows a traceback with an error.")

SETTINGS: tuple[Setting[Any], ...] = (
    HOME,
    CATALOG,
    HISTORY_LOADS,
    DIRECT,
    DEVICE,
    DTYPE,
    HUB_TIMEOUT,
    LOCK,
    REQUIRE_LOCK,
    BUDGET,
    MAX_MODELS,
    KEEP_ALIVE,
    ROOM_TIMEOUT,
    TRUST_REMOTE_CODE,
    DEBUG,
)  # each has its own type

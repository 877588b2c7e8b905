"""The settings of medvllm: name, default, parser and help text of each. A setting is read whenever it is used.

The environment takes precedence over `config.toml` in MEDVLLM_HOME, which takes precedence over
/etc/medvllm/config.toml.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from medvllm.errors import SettingError
from medvllm.near_names import did_you_mean, near_keys
from medvllm.quantities import parse_budget, parse_duration
from medvllm.settings_files import PREFIX, SYSTEM, SettingsFiles

T = TypeVar("T")

_SHARED_S = 0.01  # how long a look at the settings files may count in a block of `shared_look`
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


class Setting(Generic[T]):
    """A setting: an environment variable, or a key in a settings file. Calling it returns its current value.

    Attributes:
        name: The environment variable. In a settings file, the key is this name in lower case without MEDVLLM_.
        default: The text that applies when nothing else is set.
        parse: Turns the text into a value. Raises ValueError with the reason, which the message puts after "which is".
        help: One or two sentences for the documentation.
        only_environment: Whether settings files cannot contain it, because it determines where they are.
    """

    def __init__(
        self, name: str, default: str, parse: Callable[[str], T], help: str, only_environment: bool = False
    ) -> None:
        self.name = name
        self.default = default
        self.parse = parse
        self.help = help
        self.only_environment = only_environment

    def __call__(self) -> T:
        return self._parse(*self.read_text())

    def read_text(self) -> tuple[str, str]:
        """Return the text that applies, and its origin: "environment", "default", or the path of a settings file."""
        if text := os.environ.get(self.name, "").strip():
            return text, "environment"
        if not self.only_environment and (found := _read_files().get(self.name)) is not None:
            return found.text, str(found.file)
        return self.default, "default"

    def _parse(self, text: str, origin: str) -> T:
        try:
            value = self.parse(text)
            if isinstance(value, Path) and origin not in ("environment", "default") and not _is_absolute(text):
                raise ValueError("a relative path; a settings file needs an absolute one")
            return value
        except ValueError as error:
            shown = without_password(text)
            raise SettingError(
                f"{self._where(origin)} is {shown!r}, which is {error}.\n{self._advice(origin)}",
                setting=self.name,
                value=shown,
            ) from error

    def _where(self, origin: str) -> str:
        if origin in ("environment", "default"):
            return f"Setting {self.name}"
        return f"Setting {self.name.removeprefix(PREFIX).lower()!r} in {origin!r}"

    def _advice(self, origin: str) -> str:
        if origin == "default" or "~" in self.default:  # the default itself may not work here
            return f"Set it to a path: export {self.name}=/path"
        if origin == "environment":
            return f"Unset it, or set it to its default: export {self.name}={self.default}"
        return f"Correct the file, or override it: export {self.name}={self.default}"


class Texts:
    """A key that changes when one of a few environment variables changes. Calling it returns the key.

    Every cache hit computes this key, so it must be cheap. `os.environ` encodes the name and decodes the value at each
    access, so the mapping behind it is read instead. Settings files are not checked here: a changed file is noticed
    when a setting is next read.

    Attributes:
        values: Returns an iterator of the variables' values, without a call of Python code.
        files: The settings files. Their `generation` is the other part of the key.
    """

    def __init__(self, *settings: Setting[Any]) -> None:
        kept = getattr(os.environ, "_data", None)
        mapping: Mapping[Any, Any] = os.environ if kept is None else kept
        names = {HOME.name, *(setting.name for setting in settings)}
        keys = [name if kept is None else os.environ.encodekey(name) for name in sorted(names)]
        self.values: Callable[[], Iterator[Any]] = partial(map, mapping.get, keys)
        self.files = _files

    def __call__(self) -> tuple[Any, ...]:
        return self.files.generation, *self.values()


_files = SettingsFiles()


def _read_files() -> Mapping[str, Any]:
    if (shared := _shared_look.get()) is not None and time.monotonic() < shared.until:
        return shared.found
    found = _files.read(files(), (setting.name for setting in SETTINGS if not setting.only_environment))
    if shared is not None:
        _shared_look.set(_SharedLook(found, time.monotonic() + _SHARED_S))
    return found


@contextmanager
def shared_look() -> Iterator[None]:
    """Look at the settings files once for all settings that this thread reads in the block, such as those of a load.

    A look that is older than 10 ms is repeated, because a load may wait for a long time.
    """
    before = _shared_look.set(_shared_look.get() or _SharedLook({}, 0.0))
    try:
        yield
    finally:
        _shared_look.reset(before)


class _SharedLook(NamedTuple):
    """What a look at the settings files found, and until when it counts, on the monotonic clock."""

    found: Mapping[str, Any]
    until: float


_shared_look: ContextVar[_SharedLook | None] = ContextVar("shared_look", default=None)  # None outside a block


def files() -> tuple[Path, Path]:
    """Return the paths of the settings files, the one with precedence first. The files need not exist."""
    return _config_of(HOME()), SYSTEM


@lru_cache(maxsize=64)
def _config_of(home: Path) -> Path:
    return home / "config.toml"


def read_files() -> int:
    """Read the settings files if they have changed, and return a number that changes with their contents.

    Raises:
        SettingError: A file cannot be read, or has a key that is not a setting.
    """
    _read_files()
    return _files.generation


def find_unknown() -> dict[str, list[str]]:
    """Return the MEDVLLM_* environment variables that are not settings, each with settings of a similar name."""
    # Without the prefix, which would make all names similar.
    known = [setting.name.removeprefix(PREFIX) for setting in SETTINGS]
    others = sorted(name for name in os.environ if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known)
    return {name: [PREFIX + near for near in near_keys(name.removeprefix(PREFIX), known)] for name in others}


@cache
def warn_of_unknown() -> None:
    """Log each MEDVLLM_* variable that is not a setting, once. A misspelt name could leave a safeguard off."""
    for name, near in find_unknown().items():
        import logging  # imported here, because a warning is rare

        logging.getLogger(__name__).warning(
            "%s is not a setting of medvllm and has no effect.%s", name, did_you_mean(near)
        )


def is_secret(name: str) -> bool:
    """Return whether the value of a URL parameter must not be shown, such as password or sslpassword."""
    from urllib.parse import unquote

    return re.search(_SECRET, unquote(name).rstrip("= "), re.IGNORECASE) is not None


def without_password(text: str) -> str:
    """Return a URL, or parameters such as host=x password=y, with secrets replaced by ***."""
    hidden = re.sub(_PARAMETER, lambda found: found[1] + "***" if is_secret(found[1]) else found[0], text)
    return re.sub(_USER, lambda found: f"{found[1] or ''}***", hidden, flags=re.IGNORECASE)


# Patterns are texts, not compiled, so that importing this module is fast. `re` compiles and caches them.
_SECRET = "pass(?!file)|pwd|secret|token|scram|credential|signature|api_?key|^sig$|^key$"
# A value in quotes, or up to the next parameter. A part without "=" still belongs to the value before it.
_PARAMETER = r"((?:^|(?<=[?&;\s]))[^=?&;:/@\s]+\s*=\s*)('(?:[^'\\]|\\.)*'?|[^&\s]*(?:&[^=&\s]*(?=&|\s|$))*)"
# A password before the host, or only a token before it, as proxies of the Hub accept it.
_USER = r"(?<=://)([^/?#@:\s]*:).*(?=@)|(?<=http://)[^/?#@:\s]+(?=@)|(?<=https://)[^/?#@:\s]+(?=@)"


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
        raise ValueError("not a number of seconds between 0 and 86400")
    return seconds


def _count(text: str, *, word: str = "none") -> int | None:
    if text.lower() == word:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"neither {word} nor a whole number of 1 or more")
    return int(text)


def _keep_alive(text: str) -> float | None:
    return None if text.lower() == "none" else parse_duration(text)


def _path(text: str) -> Path:
    if text[0] == "/" and "$" not in text and text[-1] not in "'\"":
        return _whole_path(text)
    if text[0] in "'\"" or text[-1] in "'\"":
        raise ValueError("in quotes; they would become part of the path")
    expanded = os.path.expandvars(text)
    if missing := re.search(r"\$\{?\w+", expanded):
        raise ValueError(f"not a path: the variable {missing[0].strip('${')} is not set")
    try:
        return Path(expanded).expanduser().absolute()
    except (RuntimeError, OSError):
        raise ValueError("not a path that can be resolved") from None


@lru_cache(maxsize=64)  # each read of any setting asks for MEDVLLM_HOME
def _whole_path(text: str) -> Path:
    return Path(text)


def _is_absolute(text: str) -> bool:
    return os.path.isabs(os.path.expanduser(os.path.expandvars(text.removeprefix("sqlite:///"))))


def _catalog(text: str) -> Path | str | None:
    if text.lower() == "auto":
        return None
    scheme, separator, rest = text.partition("://")
    if not separator and text.startswith(("/", "./", "../", "~/", "$")):  # a single word is more likely a mistake
        return _path(text)
    if scheme.lower() in ("postgresql", "postgres", "postgresql+psycopg") and rest:
        return f"postgresql://{rest}"
    if scheme.lower() == "sqlite" and rest.startswith("/") and rest.strip("/"):
        return _path(rest.removeprefix("/"))
    raise ValueError("neither postgresql://user@host/database nor a path such as /srv/catalog.db")


def _lock(text: str) -> Path | None:
    return None if text.lower() == "auto" else _path(text)


def _optional_path(text: str) -> Path | None:
    return None if text.lower() == "none" else _path(text)


HOME = Setting(
    "MEDVLLM_HOME",
    "~/.medvllm",
    _path,
    "Folder for medvllm's own files, such as converted weights. Only the environment can set it.",
    only_environment=True,
)
CATALOG = Setting(
    "MEDVLLM_CATALOG",
    "auto",
    _catalog,
    "Database of the stored catalogue: a SQLite file, or postgresql://user@host/database. auto means catalog.db in "
    "MEDVLLM_HOME.",
)
AUDIT_LOADS = Setting(
    "MEDVLLM_AUDIT_LOADS", "off", _switch, "Whether the history records each load, with the digest of its receipt."
)
ALLOW_UNREGISTERED = Setting(
    "MEDVLLM_ALLOW_UNREGISTERED",
    "on",
    _switch,
    "Whether models that are not registered may be loaded, from the Hub or a folder.",
)
DEVICE = Setting(
    "MEDVLLM_DEVICE",
    "cpu",
    str,
    "Default device: cpu, cuda, cuda:1, mps, or auto (the first accelerator, else the CPU).",
)
DTYPE = Setting(
    "MEDVLLM_DTYPE",
    "auto",
    str,
    "Default dtype of the weights: float32, bfloat16, float16, or auto (the checkpoint's own, or float32 on a CPU that "
    "has no instructions for it).",
)
HUB_TIMEOUT = Setting("MEDVLLM_HUB_TIMEOUT", "5", _seconds, "Seconds to wait for a connection to the Hub.")
LOCK_FILE = Setting(
    "MEDVLLM_LOCK_FILE",
    "auto",
    _lock,
    "The lock file that loads are checked against, if it exists. auto means medvllm.lock in the working directory, or "
    "in MEDVLLM_HOME if MEDVLLM_REQUIRE_LOCK is on.",
)
REQUIRE_LOCK = Setting("MEDVLLM_REQUIRE_LOCK", "off", _switch, "Whether only models in the lock file may be loaded.")
TRUST_REMOTE_CODE = Setting(
    "MEDVLLM_TRUST_REMOTE_CODE",
    "off",
    _switch,
    "Whether a repository's own code may run, for entries that set trust_remote_code and pin its commit.",
)
MEMORY_BUDGET = Setting(
    "MEDVLLM_MEMORY_BUDGET",
    "auto",
    parse_budget,
    "Memory for models on each device, such as cpu=8GB,cuda:0=20GB. auto means three quarters of the memory of the "
    "machine or cgroup, and nine tenths of a GPU's.",
)
MAX_MODELS = Setting(
    "MEDVLLM_MAX_MODELS", "none", _count, "The largest number of models in memory, besides the limit in bytes."
)
KEEP_ALIVE = Setting(
    "MEDVLLM_KEEP_ALIVE",
    "none",
    _keep_alive,
    "How long an idle model stays in memory: 10m, seconds, 0 (until it is released), -1 (always), or none (until its "
    "memory is needed).",
)
MEMORY_TIMEOUT = Setting(
    "MEDVLLM_MEMORY_TIMEOUT", "30", _seconds, "Seconds that a load waits for memory that other models use."
)
MAX_QUEUED_TOKENS = Setting(
    "MEDVLLM_MAX_QUEUED_TOKENS",
    "none",
    _count,
    "The largest number of tokens that may wait while a model runs. A call that would add more is refused, unless "
    "nothing waits. none means no limit.",
)
REDACTION_KEY_FILE = Setting(
    "MEDVLLM_REDACTION_KEY_FILE",
    "none",
    _optional_path,
    "File with the secret key that redaction uses for hashes, surrogates and shifted dates: 16 bytes or more.",
)
THREADS = Setting(
    "MEDVLLM_THREADS",
    "auto",
    partial(_count, word="auto"),
    "Threads that compute a batch on a CPU. auto means the cores that the process may use. A program that calls "
    "torch.set_num_threads or sets OMP_NUM_THREADS keeps its own number.",
)
DEBUG = Setting("MEDVLLM_DEBUG", "off", _switch, "Whether the command line shows tracebacks.")

# Any, because each setting has a type of its own.
SETTINGS: tuple[Setting[Any], ...] = (
    HOME,
    CATALOG,
    AUDIT_LOADS,
    ALLOW_UNREGISTERED,
    DEVICE,
    DTYPE,
    HUB_TIMEOUT,
    LOCK_FILE,
    REQUIRE_LOCK,
    MEMORY_BUDGET,
    MAX_MODELS,
    KEEP_ALIVE,
    MEMORY_TIMEOUT,
    MAX_QUEUED_TOKENS,
    TRUST_REMOTE_CODE,
    REDACTION_KEY_FILE,
    THREADS,
    DEBUG,
)

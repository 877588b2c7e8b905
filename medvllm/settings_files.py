"""Reads settings from `config.toml` in /etc/medvllm and in MEDVLLM_HOME.

A key is the name of an environment variable in lower case, without MEDVLLM_.
"""

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medvllm.errors import SettingError
from medvllm.near_names import did_you_mean, near_keys

SYSTEM = Path("/etc/medvllm/config.toml")
PREFIX = "MEDVLLM_"


class SettingText(NamedTuple):
    """The text of a setting, as it would be in an environment variable, and the file that contains it."""

    text: str
    file: Path


class SettingsFiles:
    """The contents of the settings files. They are read again when one of them has changed."""

    def __init__(self) -> None:
        self.generation = 0  # changes with the contents of the files
        self._kept: tuple[object, Mapping[str, SettingText]] = (None, {})

    def read(self, files: Iterable[Path], known: Iterable[str]) -> Mapping[str, SettingText]:
        """Return the settings in the files, by the names of their variables.

        Args:
            files: The files in the order of precedence.
            known: The names of all variables.

        Raises:
            SettingError: A file cannot be read, or has a key that is not a setting.
        """
        stamps = [(file, _stamp(file)) for file in files]
        if stamps != self._kept[0]:
            names = [*known]
            found: dict[str, SettingText] = {}
            for file, stamp in stamps:
                if stamp is not None:
                    found = {**_read(file, names), **found}
            self._kept = stamps, found
            self.generation += 1
        return self._kept[1]


def _stamp(file: Path) -> object:
    """Return a value that changes when the file does; None if the file does not exist."""
    try:
        status = os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(file, error) from error
    if stat.S_ISLNK(status.st_mode):
        try:
            status = os.stat(file)
        except OSError as error:  # for example a link to a disk that is not mounted
            raise _unreadable(file, error) from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe could block
        reason = os.strerror(errno.EISDIR) if stat.S_ISDIR(status.st_mode) else "it is not a file"
        raise _unreadable(file, OSError(errno.EINVAL, reason))
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(file: Path, known: Iterable[str]) -> dict[str, SettingText]:
    import tomllib

    try:
        content = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise _unreadable(file, error) from error
    except ValueError as error:
        raise SettingError(f"Settings file {str(file)!r} is not valid TOML: {error}.", file=str(file)) from error
    keys = {name.removeprefix(PREFIX).lower(): name for name in known}
    for key in content:
        if key not in keys:
            near = near_keys(key.lower().removeprefix(PREFIX.lower()), keys)
            raise SettingError(
                f"Settings file {str(file)!r} contains {key[:80]!r}, which is not a setting.{did_you_mean(near)}\n"
                f"Use one of: {', '.join(sorted(keys))}",
                file=str(file),
                setting=key,
                candidates=tuple(near),
            )
    return {keys[key]: SettingText(_text(file, key, value), file) for key, value in content.items()}


def _text(file: Path, key: str, value: Any) -> str:
    """Return a value as the text of an environment variable."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int | float) and str(value).strip():
        return str(value).strip()
    raise SettingError(
        f"Setting {key!r} in {str(file)!r} must be text, a number, true or false.", file=str(file), setting=key
    )


def _unreadable(file: Path, error: OSError) -> SettingError:
    # This is an error and not ignored, because the file may contain a safeguard such as `require_lock`.
    return SettingError(
        f"Settings file {str(file)!r} cannot be read: {error.strerror}.\n"
        f"Check the permissions: ls -ld {file.parent} {file}",
        file=str(file),
    )

"""Notes as files of one folder. What lies there may be anybody's: no link is followed, nothing is read without end."""

import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from medvllm.files import make_own
from medvllm.processes.board import GONE_S, Kept

_NAME = re.compile(r"([0-9a-f]{32})\.json")
_LEFT = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{8}\.partial")
_MOST = 4 << 20  # bytes of a note
_MOST_NOTES = 10_000
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Folder:
    """The folder `path`. If `is_shared`, who may write to the folder above it may read its notes and add to them."""

    def __init__(self, path: Path, *, is_shared: bool = False) -> None:
        self.path = path
        self._is_shared = is_shared

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def put(self, id: str, text: str) -> None:
        """Write a note, whole, in place of the one of that id."""
        own = self._make()
        partial = self.path / f".{id}.{secrets.token_hex(4)}.partial"
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                with suppress(OSError):  # a disk without permissions
                    os.fchmod(stream.fileno(), own)
                stream.write(text)
            partial.replace(self.path / f"{id}.json")
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def remove(self, id: str) -> None:
        """Take a note away; one that is not there is no error."""
        (self.path / f"{id}.json").unlink(missing_ok=True)

    def kept(self) -> Iterator[Kept]:
        """Give every note that can be read; none where there is no folder yet."""
        with suppress(OSError), os.scandir(self.path) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MOST_NOTES), strict=False)]
            for name in sorted(names):
                with suppress(OSError):
                    if (match := _NAME.fullmatch(name)) and (kept := self._read(name, match[1])):
                        yield kept
                    elif _LEFT.fullmatch(name) and time.time() - (self.path / name).lstat().st_mtime > GONE_S:
                        (self.path / name).unlink()

    def _read(self, name: str, id: str) -> Kept | None:
        handle = os.open(self.path / name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST:
                return None
            return Kept(id, stream.read(_MOST), time.time() - status.st_mtime, status.st_uid)

    def _make(self) -> int:
        """Make the folder, and return the permissions of a note in it: the process's own, whatever the umask."""
        if not self.path.is_dir():
            make_own(self.path.parent)
            self.path.mkdir(mode=0o700, exist_ok=True)
            above = self.path.parent.stat().st_mode if self._is_shared else 0
            with suppress(OSError):
                self.path.chmod(0o1777 if above & 0o002 else 0o2770 if above & 0o020 else 0o700)
        mode = self.path.stat().st_mode if self._is_shared else 0
        return 0o644 if mode & 0o002 else 0o640 if mode & 0o020 else 0o600

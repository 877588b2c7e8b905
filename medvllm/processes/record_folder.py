"""Records as files of one folder. Other users may write there, so links are not followed and reads are limited."""

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from medvllm.files import chmod, make_own, open_partial, remove_partial_files
from medvllm.processes.record_store import StoredRecord

_NAME = re.compile(r"([0-9a-f]{32})\.json")
_PARTIAL = re.compile(r"\.([0-9a-f]{32}\.json)\.[0-9a-f]{16}\.partial")
_MAX_BYTES = 4 << 20  # of one record
_MAX_RECORDS = 10_000
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class RecordFolder:
    """The records in a folder.

    Args:
        path: The folder. It is created when the first record is written.
        is_shared: Whether everyone who may write to the parent folder may read these records and add their own.
    """

    def __init__(self, path: Path, *, is_shared: bool = False) -> None:
        self.path = path
        self._is_shared = is_shared

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordFolder) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def write(self, id: str, text: str) -> None:
        """Write a record, replacing the one with that id as a whole."""
        mode = self._prepare()
        file = self.path / f"{id}.json"
        with open_partial(file) as (handle, path):
            with os.fdopen(os.dup(handle), "w", encoding="utf-8") as stream:
                stream.write(text)
            chmod(handle, mode)
            path.replace(file)

    def remove(self, id: str) -> None:
        """Remove a record, if it exists."""
        (self.path / f"{id}.json").unlink(missing_ok=True)

    def read_all(self) -> Iterator[StoredRecord]:
        """Yield every record that can be read; none if the folder does not exist yet."""
        with suppress(OSError), os.scandir(self.path) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_MAX_RECORDS), strict=False)]
            for name in sorted(names):
                with suppress(OSError):
                    if (match := _NAME.fullmatch(name)) and (record := self._read(name, match[1])):
                        yield record
                    elif match := _PARTIAL.fullmatch(name):  # a process died while it wrote
                        remove_partial_files(self.path / match[1])

    def _read(self, name: str, id: str) -> StoredRecord | None:
        handle = os.open(self.path / name, _FLAGS)
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                return None
            return StoredRecord(id, stream.read(_MAX_BYTES), time.time() - status.st_mtime, status.st_uid)

    def _prepare(self) -> int:
        """Create the folder, and return the mode of a record in it: of the folder's users, whatever the umask."""
        if not self.path.is_dir():
            make_own(self.path.parent)
            self.path.mkdir(mode=0o700, exist_ok=True)
            above = self.path.parent.stat().st_mode if self._is_shared else 0
            with suppress(OSError):
                self.path.chmod(0o1777 if above & 0o002 else 0o2770 if above & 0o020 else 0o700)
        mode = self.path.stat().st_mode if self._is_shared else 0
        return 0o644 if mode & 0o002 else 0o640 if mode & 0o020 else 0o600

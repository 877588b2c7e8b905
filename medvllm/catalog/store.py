"""Entries that outlive the process, in one TOML file: `MEDVLLM_HOME/entries.toml`."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medvllm import settings
from medvllm.catalog.entries import from_toml, to_toml, versions_of
from medvllm.errors import CatalogError, ModelExistsError
from medvllm.files import write_whole
from medvllm.metadata import ModelMetadata


class FileStore:
    """The stored entries of this machine's user. Another process sees a change at its next look-up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _read
        self._read = _Stored(None, 0, {}, {})

    def revision(self) -> int:
        """Return a number that changes with the file: 0 while there is none."""
        try:
            status = os.stat(self._file())
        except OSError:
            return 0
        return hash((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))

    def entries(self) -> Mapping[str, ModelMetadata]:
        """Return the entries by name; CatalogError when the file cannot be read."""
        return self._stored().entries

    def add(self, metadata: ModelMetadata, *, replace: bool) -> ModelMetadata:
        """Keep an entry as the next version of its name. ModelExistsError: it has one, and `replace` is not set."""
        with self._turn() as stored:
            before = stored.entries.get(metadata.name)
            if before is not None and not replace:
                raise ModelExistsError(
                    f"Model {metadata.name!r} is stored already (version {before.version}).\n"
                    "Take another name, or say that this one takes its place: register(…, replace=True)",
                    model=metadata.name,
                )
            built_in = metadata.version if metadata.origin == "built-in" else 0  # the one that this is a copy of
            version = max(stored.versions.get(metadata.name, 0), built_in) + 1
            entry = metadata.changed(version=version, origin="stored")
            self._write({**stored.entries, entry.name: entry}, {**stored.versions, entry.name: version})
        return entry

    def remove(self, name: str) -> None:
        """Forget an entry, but not its last version: that is never given again."""
        with self._turn() as stored:
            kept = {other: entry for other, entry in stored.entries.items() if other != name}
            self._write(kept, stored.versions)

    def _stored(self) -> "_Stored":
        revision, file = self.revision(), self._file()
        with self._lock:
            if (self._read.file, self._read.revision) != (file, revision):
                self._read = _Stored.of(file, revision)
            return self._read

    @contextmanager
    def _turn(self) -> Iterator["_Stored"]:
        """Give what is stored, for one change at a time among all processes."""
        from filelock import FileLock

        file = self._file()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_name("entries.lock")):
                yield self._stored()
        except OSError as error:
            raise CatalogError(f"{file} cannot be written: {error}.", path=str(file)) from error

    def _write(self, entries: Mapping[str, ModelMetadata], versions: Mapping[str, int]) -> None:
        write_whole(self._file(), to_toml(entries, versions).encode())

    @staticmethod
    def _file() -> Path:
        return _file(os.environ.get(settings.HOME.name))


@cache
def _file(_: str | None) -> Path:
    # By the variable's text: parsing the path anew would cost a hit more than all the rest of it.
    return settings.HOME() / "entries.toml"


@dataclass(frozen=True)
class _Stored:
    """What the file holds."""

    file: Path | None
    revision: int
    entries: dict[str, ModelMetadata]
    versions: dict[str, int]  # the newest ever given to a name, also to one that is gone

    @classmethod
    def of(cls, file: Path, revision: int) -> "_Stored":
        if not revision:
            return cls(file, revision, {}, {})
        try:
            text = file.read_text(encoding="utf-8")
            return cls(file, revision, from_toml(text, "stored"), versions_of(text))
        except (OSError, UnicodeDecodeError, CatalogError) as error:
            raise CatalogError(f"{file} cannot be used: {error}", path=str(file)) from error

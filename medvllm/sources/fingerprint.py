"""Whether files have changed since they were hashed: one answer for hits, reloads, tokenizers and receipts."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medvllm.errors import IncompleteSnapshotError
from medvllm.sources.os_errors import to_source_error

__all__ = ["Fingerprint", "Stamp", "read_stamp"]

Stamp = tuple[int, int, int, int, int]  # device, inode, size, mtime_ns, ctime_ns


def read_stamp(file: Path) -> Stamp:
    """Return the stamp of a file. It changes with the file, and costs no read of the content.

    Raises:
        IncompleteSnapshotError: The file does not exist.
        SourceError: The operating system denies access.
    """
    try:
        status = os.stat(file)
    except FileNotFoundError as error:
        why = ": it is a broken link" if file.is_symlink() else ""
        raise IncompleteSnapshotError(f"{file.parent} has no {file.name}{why}.", path=str(file)) from error
    except OSError as error:
        raise to_source_error(error, file) from error
    return _to_stamp(status)


@dataclass(frozen=True)
class Fingerprint:
    """Stamps of files and folders, all taken at one moment. A path that did not exist has None.

    Every change of a file's content, owner or times changes its ctime, which no program can set. A file that was
    replaced has another inode. The stamp of a folder shows that a file in it was added, removed or renamed.
    """

    stamps: tuple[tuple[str, Stamp | None], ...] = ()

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Fingerprint":
        """Return the fingerprint of files and folders as they are now."""
        return cls(tuple((str(path), _stamp_or_none(str(path))) for path in paths))

    @classmethod
    def from_stamps(cls, folder: Path, stamps: Mapping[str, Stamp]) -> "Fingerprint":
        """Return the fingerprint of a folder's files from stamps that were taken before, by name."""
        return cls(tuple((str(folder / name), taken) for name, taken in stamps.items()))

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        return Fingerprint(self.stamps + other.stamps)

    def is_current(self) -> bool:
        """Return whether no path has changed."""
        # Every cache hit runs this. It calls no function of ours, and compares first what changes most often.
        try:
            for path, taken in self.stamps:
                if taken is None:
                    if os.access(path, os.F_OK):
                        return False
                    continue
                now = os.stat(path)
                device, inode, size, modified, changed = taken
                if (
                    now.st_ctime_ns != changed
                    or now.st_mtime_ns != modified
                    or now.st_size != size
                    or now.st_ino != inode
                    or now.st_dev != device
                ):
                    return False
        except OSError:
            return False
        return True

    def restrict_to(self, paths: Collection[str]) -> "Fingerprint":
        """Return the fingerprint of some of the paths."""
        return Fingerprint(tuple(row for row in self.stamps if row[0] in paths))

    def stamp_of(self, path: Path) -> Stamp | None:
        """Return the stamp of one path, or None if there is none."""
        return next((taken for known, taken in self.stamps if known == str(path)), None)

    def changed_paths(self) -> list[Path]:
        """Return the paths that have changed."""
        return [Path(path) for path, taken in self.stamps if _stamp_or_none(path) != taken]


def _stamp_or_none(path: str) -> Stamp | None:
    try:
        return _to_stamp(os.stat(path))
    except OSError:
        return None


def _to_stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

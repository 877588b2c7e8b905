"""Whether files are still those that were hashed: the one notion of it, for a hit, a reload, a tokenizer, a receipt."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medvllm.errors import IncompleteSnapshotError
from medvllm.sources.edge import unusable

__all__ = ["Fingerprint", "Stamp", "stamp"]

Stamp = tuple[int, int, int, int, int]  # device, inode, size, mtime_ns, ctime_ns


def stamp(file: Path) -> Stamp:
    """Return what tells, without reading a file, that it is still the one it was.

    Raises:
        IncompleteSnapshotError: The file is not there.
        SourceError: The system does not let it be looked at.
    """
    try:
        status = os.stat(file)
    except FileNotFoundError as error:
        why = ": it is a link that leads nowhere" if file.is_symlink() else ""
        raise IncompleteSnapshotError(f"{file.parent} lacks {file.name}{why}.", path=str(file)) from error
    except OSError as error:
        raise unusable(error, file) from error
    return _of(status)


@dataclass(frozen=True)
class Fingerprint:
    """Files and folders as they were at one moment: path -> stamp, None for one that was not there.

    A change of a file's content, owner or time changes its ctime, which nobody can set. A file that was replaced is
    another inode. A folder's stamp tells that a file was added, removed or renamed.
    """

    stamps: tuple[tuple[str, Stamp | None], ...] = ()

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Fingerprint":
        """Return the fingerprint of files and folders as they are now."""
        return cls(tuple((str(path), _now(str(path))) for path in paths))

    @classmethod
    def at(cls, folder: Path, stamps: Mapping[str, Stamp]) -> "Fingerprint":
        """Return the fingerprint of a folder's files, by name, as they were when the stamps were taken."""
        return cls(tuple((str(folder / name), taken) for name, taken in stamps.items()))

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        return Fingerprint(self.stamps + other.stamps)

    def holds(self) -> bool:
        """Return whether everything is as it was."""
        # Part of every hit: no call to a function of ours, and the rarest difference is asked for last.
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

    def only(self, paths: Collection[str]) -> "Fingerprint":
        """Return the part that is of some of the paths."""
        return Fingerprint(tuple(row for row in self.stamps if row[0] in paths))

    def of_path(self, path: Path) -> Stamp | None:
        """Return the stamp that a file had; None for one that was not looked at."""
        return next((taken for known, taken in self.stamps if known == str(path)), None)

    def changed(self) -> list[Path]:
        """Return what is not as it was."""
        return [Path(path) for path, taken in self.stamps if _now(path) != taken]


def _now(path: str) -> Stamp | None:
    try:
        return _of(os.stat(path))
    except OSError:
        return None


def _of(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns

"""What medvllm keeps on the disk, and the removal of what nobody uses."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from medvllm import settings
from medvllm.local_files import hub_cache
from medvllm.sources import conversion, prepared_folder
from medvllm.sources.disk_users import Users
from medvllm.sources.os_errors import convert_os_errors

Kind = Literal["models", "converted", "prepared", "views", "leftovers", "Hub"]
_DAY_S = 86_400.0
_ROOMS = ("models", "converted", "prepared")


@dataclass(frozen=True)
class DiskItem:
    """A folder of MEDVLLM_HOME, a file that was left there, or a repository in the Hub's cache.

    Attributes:
        kind: What it is.
        name: The name of the folder or file, or the repository's id.
        path: Where it is.
        size_bytes: Its size. Files with two names count once.
        last_used: When it was last read or written, in seconds since the epoch, as far as the file system records it.
        used_by: The entries, locks and processes that use it.
    """

    kind: Kind
    name: str
    path: Path
    size_bytes: int
    last_used: float
    used_by: tuple[str, ...]

    @property
    def is_removable(self) -> bool:
        """Whether `prune` removes it. Other programs use the Hub's cache too, and old views expire."""
        return not self.used_by and self.kind not in ("Hub", "views")

    def to_dict(self) -> dict[str, Any]:
        """Return the item for JSON output."""
        return vars(self) | {"path": str(self.path), "used_by": list(self.used_by)}


@convert_os_errors
def list_items(users: Users) -> list[DiskItem]:
    """Return what is in MEDVLLM_HOME and in the Hub's cache, by kind, the largest first."""
    home = settings.HOME()
    found = [*_models(home, users), *_copies(home, users), *_views(home), *_leftovers(home), *_repositories(users)]
    kinds = get_args(Kind)
    return sorted(found, key=lambda item: (kinds.index(item.kind), -item.size_bytes, item.name))


@convert_os_errors
def prune(users: Users, *, dry_run: bool = False) -> list[DiskItem]:
    """Remove what no entry, lock or process uses and what killed processes left, and return it.

    Args:
        users: Everything that may use what is on the disk.
        dry_run: Whether to remove nothing.
    """
    chosen = [item for item in list_items(users) if item.is_removable]
    return chosen if dry_run else [item for item in chosen if _remove(item)]


def _models(home: Path, users: Users) -> Iterator[DiskItem]:
    for folder in _finished_folders(home / "models"):
        yield _make_item("models", folder, users.of_model(folder))


def _copies(home: Path, users: Users) -> Iterator[DiskItem]:
    made = list(_finished_folders(home / "converted"))
    for folder in made:
        rows = _read_field(folder / conversion.RECORD, "originals", list)
        originals = {str(row.get("name")): str(row.get("sha256")) for row in rows if isinstance(row, dict)}
        yield _make_item("converted", folder, users.of_copy(folder, originals))
    for folder in _finished_folders(home / "prepared"):
        made_of = _read_field(folder / prepared_folder.RECORD, "made_of", dict)
        yield _make_item("prepared", folder, users.of_copy(folder, made_of, made))


def _views(home: Path) -> Iterator[DiskItem]:
    """Give the folders of links for loaders as one item, because they take no space."""
    if views := _finished_folders(home / "views"):
        yield _make_item("views", home / "views", [f"{len(views)} views"])


def _leftovers(home: Path) -> Iterator[DiskItem]:
    """Give what killed processes left, once it is a day old, and all backups of the catalogue except the last."""
    backups = sorted(home.glob("*.backup"), key=lambda file: file.stat().st_mtime)[:-1]
    partials = (path for pattern in ("*.partial", "*/*.partial") for path in home.glob(pattern))
    working = (path for room in _ROOMS for path in (home / room).glob("*.*") if path.suffix != ".partial")
    for path in sorted({*backups, *partials, *working}):
        is_needed = path.suffix == ".lock" and path.with_suffix("").is_dir()
        with suppress(OSError):
            if not is_needed and abs(time.time() - path.lstat().st_mtime) > _DAY_S:
                yield _make_item("leftovers", path, ())


def _repositories(users: Users) -> Iterator[DiskItem]:
    for folder in sorted(hub_cache().glob("models--*")):
        used = (name for name, snapshot in users.folders if snapshot.is_relative_to(folder / "snapshots"))
        yield _make_item("Hub", folder, used, folder.name.removeprefix("models--").replace("--", "/"))


def _make_item(kind: Kind, path: Path, used_by: Iterable[str], name: str | None = None) -> DiskItem:
    size, last = 0, 0.0
    seen = set()
    for file in (path, *path.rglob("*")):
        with suppress(OSError):
            status = file.lstat()
            last = max(last, status.st_mtime, status.st_atime if file.is_file() else 0.0)
            if not file.is_dir() and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size += status.st_size
    return DiskItem(kind, name or path.name, path, size, last, tuple(dict.fromkeys(used_by)))


def _finished_folders(room: Path) -> list[Path]:
    """Return the finished folders in a part of MEDVLLM_HOME. Unfinished ones have a dot in their name."""
    with suppress(FileNotFoundError):
        return sorted(Path(entry.path) for entry in os.scandir(room) if entry.is_dir() and "." not in entry.name)
    return []


def _read_field(file: Path, key: str, kind: type) -> Any:
    """Return one field of a record, empty if the record is damaged or missing."""
    try:
        part = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return kind()
    return part if isinstance(part, kind) else kind()


def _remove(item: DiskItem) -> bool:
    """Remove an item. Return False if another process works on it."""
    from filelock import FileLock, Timeout

    lock = item.path if item.path.suffix == ".lock" else item.path.with_name(f"{item.path.name.split('.')[0]}.lock")
    try:
        if item.kind == "leftovers" and item.path.suffix in (".partial", ".backup"):
            item.path.unlink()
            return True
        with FileLock(lock, timeout=0):
            if item.path.is_dir():
                shutil.rmtree(item.path)
            lock.unlink(missing_ok=True)  # a process that waits for it makes a new one
            return True
    except Timeout:
        return False

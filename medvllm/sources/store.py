"""What medvllm keeps on the disk, who uses it, and the removal of what nobody uses."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medvllm import settings
from medvllm.lazy import lazy
from medvllm.local_files import hub_cache, repository_folder
from medvllm.metadata import ModelMetadata
from medvllm.names import ModelRef, parse
from medvllm.sources import conversion, prepared
from medvllm.sources.digest import key_of
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.edge import edge
from medvllm.sources.fingerprint import stamp
from medvllm.sources.folder import located
from medvllm.sources.lock import Lock, LockedModel

Kind = Literal["models", "converted", "prepared", "views", "leftovers", "Hub"]
_DAY_S = 86_400.0
_ROOMS = ("models", "converted", "prepared")


@dataclass(frozen=True)
class Kept:
    """Something on the disk: a folder of MEDVLLM_HOME, a file that was left there, or a repository of the Hub's cache.

    `last_used` is as the disk notes it, in seconds since the epoch; `used_by` are entries, locks and processes.
    """

    kind: Kind
    name: str
    path: Path
    size_bytes: int
    last_used: float
    used_by: tuple[str, ...]

    @property
    def is_removable(self) -> bool:
        """Whether `prune` removes it: the Hub's cache is other programs' too, and views see to themselves."""
        return not self.used_by and self.kind not in ("Hub", "views")

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        return vars(self) | {"path": str(self.path), "used_by": list(self.used_by)}


@dataclass(frozen=True)
class Users:
    """Who may use what is kept.

    Attributes:
        entries: The entries of the catalogue, every version, by reference.
        running: What processes hold, by their name: snapshots as `loaded_models` has them, a path or repo@commit.
    """

    entries: Mapping[str, ModelMetadata]
    running: Sequence[tuple[str, str]]

    @lazy
    def lock(self) -> Lock:
        """The lock that is in force."""
        return Lock.current()

    @lazy
    def folders(self) -> list[tuple[str, Path]]:
        """Folders that hold models that are used, each with its user."""
        found = [(name, folder) for name, entry in self.entries.items() for folder in _folders(parse(entry.location))]
        for name, snapshot in self.running:
            source, _, told = snapshot.rpartition("@")
            is_folder = os.path.isabs(source)
            folders = _folders(parse(source if is_folder else f"hf://{source}"))
            found += [(name, folder) for folder in folders if is_folder or folder.name == told]
        return found

    @lazy
    def mapped(self) -> dict[str, str]:
        """The files of MEDVLLM_HOME that processes of this machine have mapped, as far as it tells: path -> process."""
        found: dict[str, str] = {}
        home = f"{settings.HOME().resolve()}{os.sep}"
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with suppress(OSError, UnicodeDecodeError):
                for line in maps.read_text(encoding="utf-8").splitlines():
                    if (start := line.find(home)) >= 0:
                        found[line[start:]] = f"process {maps.parent.name}"
        return found

    def of_model(self, folder: Path) -> Iterator[str]:
        """Give the users of a folder in models/."""
        yield from (name for name, used in self.folders if used.resolve() == folder.resolve())
        yield from self._locks(lambda model: model.commit is None and key_of(model.files) == folder.name)
        yield from self._processes(folder)

    def of_copy(self, folder: Path, made_of: Mapping[str, str], roots: Sequence[Path] = ()) -> Iterator[str]:
        """Give the users of weights that were made of files with these digests, from which `roots` may come too."""
        for name, used in self.folders:
            if made_of and all(_may_be((used, *roots), file, sha256) for file, sha256 in made_of.items()):
                yield name
        yield from self._locks(lambda model: made_of.items() <= _digests(model).items())
        yield from self._processes(folder)

    def _locks(self, fits: Callable[[LockedModel], bool]) -> Iterator[str]:
        yield from (f"lock of {name}" for name, model in self.lock.models.items() if fits(model))

    def _processes(self, folder: Path) -> Iterator[str]:
        inside = f"{folder.resolve()}{os.sep}"
        yield from (process for file, process in self.mapped.items() if file.startswith(inside))


@edge
def kept(users: Users) -> list[Kept]:
    """Return what is kept in MEDVLLM_HOME and in the Hub's cache, the largest of each kind first."""
    home = settings.HOME()
    found = [*_models(home, users), *_copies(home, users), *_views(home), *_leftovers(home), *_repositories(users)]
    kinds: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]
    return sorted(found, key=lambda each: (kinds.index(each.kind), -each.size_bytes, each.name))


@edge
def prune(users: Users, *, dry_run: bool = False) -> list[Kept]:
    """Remove what no entry, lock or process uses, and what dead processes have left, and return it."""
    chosen = [each for each in kept(users) if each.is_removable]
    return chosen if dry_run else [each for each in chosen if _removed(each)]


def _models(home: Path, users: Users) -> Iterator[Kept]:
    for folder in _whole(home / "models"):
        yield _kept("models", folder, users.of_model(folder))


def _copies(home: Path, users: Users) -> Iterator[Kept]:
    made = list(_whole(home / "converted"))
    for folder in made:
        rows = _record(folder / conversion.RECORD, "originals", list)
        originals = {str(row.get("name")): str(row.get("sha256")) for row in rows if isinstance(row, dict)}
        yield _kept("converted", folder, users.of_copy(folder, originals))
    for folder in _whole(home / "prepared"):
        made_of = _record(folder / prepared.RECORD, "made_of", dict)
        yield _kept("prepared", folder, users.of_copy(folder, made_of, made))


def _views(home: Path) -> Iterator[Kept]:
    """The folders of links that loaders are shown: together, as they take no room."""
    if views := _whole(home / "views"):
        yield _kept("views", home / "views", [f"{len(views)} views"])


def _leftovers(home: Path) -> Iterator[Kept]:
    """What processes have left that died, once it is a day old; and of the catalogue's backups all but the last."""
    backups = sorted(home.glob("*.backup"), key=lambda file: file.stat().st_mtime)[:-1]
    partials = (path for pattern in ("*.partial", "*/*.partial") for path in home.glob(pattern))
    working = (path for room in _ROOMS for path in (home / room).glob("*.*") if path.suffix != ".partial")
    for path in sorted({*backups, *partials, *working}):
        is_needed = path.suffix == ".lock" and path.with_suffix("").is_dir()
        with suppress(OSError):
            if not is_needed and abs(time.time() - path.lstat().st_mtime) > _DAY_S:
                yield _kept("leftovers", path, ())


def _repositories(users: Users) -> Iterator[Kept]:
    for folder in sorted(hub_cache().glob("models--*")):
        used = (name for name, snapshot in users.folders if snapshot.is_relative_to(folder / "snapshots"))
        yield _kept("Hub", folder, used, folder.name.removeprefix("models--").replace("--", "/"))


def _kept(kind: Kind, path: Path, used_by: Iterable[str], name: str | None = None) -> Kept:
    size, last = 0, 0.0
    seen = set()
    for file in (path, *path.rglob("*")):
        with suppress(OSError):
            status = file.lstat()
            last = max(last, status.st_mtime, status.st_atime if file.is_file() else 0.0)
            if not file.is_dir() and (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                size += status.st_size
    return Kept(kind, name or path.name, path, size, last, tuple(dict.fromkeys(used_by)))


def _digests(model: LockedModel) -> dict[str, str]:
    return {name: digest.sha256 for name, digest in {**model.files, **model.converted}.items()}


def _folders(location: ModelRef) -> list[Path]:
    """Return the folders that hold a model, or in the Hub's cache any commit of it."""
    if location.kind == "folder":
        return [located(Path(location.name))]
    return list((repository_folder(location.name) / "snapshots").glob("*"))


def _may_be(folders: Iterable[Path], name: str, sha256: str) -> bool:
    """Return whether a file is in one of the folders, and nothing is known that tells it from the one of a digest."""
    for folder in folders:
        with suppress(OSError):
            file = stamp(folder / name)
            if digest_cache().digests([file]).get(file, sha256) == sha256:
                return True
    return False


def _whole(room: Path) -> list[Path]:
    """Return the finished folders of a part of MEDVLLM_HOME; those that are being made have a point in their name."""
    with suppress(FileNotFoundError):
        return sorted(Path(entry.path) for entry in os.scandir(room) if entry.is_dir() and "." not in entry.name)
    return []


def _record(file: Path, key: str, kind: type) -> Any:
    """Return a part of a record; an empty one where the record is damaged or is not there."""
    try:
        part = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return kind()
    return part if isinstance(part, kind) else kind()


def _removed(each: Kept) -> bool:
    """Remove something; False when another process has it in work."""
    from filelock import FileLock, Timeout

    guard = each.path if each.path.suffix == ".lock" else each.path.with_name(f"{each.path.name.split('.')[0]}.lock")
    try:
        if each.kind == "leftovers" and each.path.suffix in (".partial", ".backup"):
            each.path.unlink()
            return True
        with FileLock(guard, timeout=0):
            if each.path.is_dir():
                shutil.rmtree(each.path)
            guard.unlink(missing_ok=True)  # whoever waits for it makes another
            return True
    except Timeout:
        return False

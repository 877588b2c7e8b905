"""A model's folder on this machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.errors import DigestMismatchError, RequestError, SnapshotNotFoundError, SourceError
from medvllm.files import make_own, place
from medvllm.names import is_digest
from medvllm.sources import making
from medvllm.sources.digest import Digest, described, differences, digests, hashed, key_of
from medvllm.sources.fingerprint import Fingerprint
from medvllm.sources.layout import decide, present
from medvllm.sources.snapshot import Snapshot, read_json


def located(path: Path) -> Path:
    """Return where a folder is: what a home kept that has been moved since is in the present one."""
    if path.parent.name == "models" and is_digest(path.name) and not path.is_dir():
        return _kept() / path.name
    return path


def resolve(path: Path, revision: str | None, *, extra: Sequence[str] = (), fresh: bool = False) -> Snapshot:
    """Return the snapshot that a folder is, its files hashed (`fresh`: again). A folder has no revisions.

    Raises:
        DigestMismatchError: A folder of MEDVLLM_HOME no longer holds what was taken into it.
    """
    if revision is not None:
        raise RequestError(
            f"Revision {revision!r} was asked of {path}, but a folder has only what is in it.", option="revision"
        )
    try:
        found, there = path.is_dir(), path.exists()
    except OSError as error:  # a name longer than the file system takes
        raise SnapshotNotFoundError(f"Folder '{str(path)[:80]}…' cannot be opened: {error.strerror}.") from error
    if not found:
        what = "is a file, not a folder" if there else "is not there"
        advice = "Name the folder that holds config.json."
        if path.parent == _kept() and is_digest(path.name):
            advice = (
                "It is a copy that medvllm keeps in its home, and this home does not have it.\n"
                "Bring it with: medvllm export, then medvllm import; or name the home that has it: export MEDVLLM_HOME="
            )
        raise SnapshotNotFoundError(f"Folder '{path}' {what}.\n{advice}", path=str(path))
    places = Fingerprint.of([path, *sorted(inner for inner in path.glob("*") if inner.is_dir())])
    names = present(path)
    before = Fingerprint()

    def read(name: str, kind: type) -> Any:
        nonlocal before
        before += Fingerprint.of([path / name])
        return read_json(path / name, kind)

    layout = decide(path, names, read, extra=extra)
    _check_kept(path, names)
    files, taken = hashed(path, layout.files, fresh=fresh)
    if changed := before.changed():
        raise SourceError(f"{changed[0]} changed while it was read.\nTry again when nothing writes to it.")
    held = {str((path / name).parent) for name in files} | {str(path)}
    return Snapshot(path, None, None, layout, files, taken, places=places.only(held))


def check_inside(snapshot: Snapshot) -> None:
    """Raise SourceError when a file of a folder is a link that leads out of it: what it holds was never put there.

    A snapshot of the Hub's cache links to the blobs beside it.
    """
    root = snapshot.path.resolve()
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    for name in snapshot.files:
        file = (snapshot.path / name).resolve()
        if not (file.is_relative_to(root) or file.parent == blobs):
            raise SourceError(
                f"{snapshot.path / name} is a link that leads out of the folder, to {file}.\n"
                f"If that file is a part of the model, put it there: cp --remove-destination '{file}' "
                f"'{snapshot.path / name}'",
                path=str(snapshot.path),
            )


def kept(files: Mapping[str, Digest]) -> Path:
    """Return where MEDVLLM_HOME has, or would have, a folder of these files."""
    return _kept() / key_of(files)


def keep(files: Mapping[str, Path], wanted: Mapping[str, Digest], *, link: bool) -> Path:
    """Make files a folder in MEDVLLM_HOME, named after their digests, and return it; one that is there stays.

    `link`: nobody else writes to the files, so that a second name of each will do.
    """
    target = kept(wanted)

    def is_whole(folder: Path) -> bool:
        there = [name for name in present(folder) if (folder / name).is_file()]
        return bool(there) and not differences(wanted, digests(folder, there, fresh=True))

    def fill(work: Path) -> None:
        for path, file in files.items():
            make_own((work / path).parent)
            place(file, work / path, link=link)
        if not link and (flaws := differences(wanted, digests(work, files))):
            raise SourceError(f"The files changed while they were copied: {described(flaws)}.")

    making.make(target, is_whole=is_whole, fill=fill)
    return target


def _check_kept(path: Path, names: Sequence[str]) -> None:
    """Raise DigestMismatchError unless a folder that `keep` has made holds the files that it is named after."""
    real = path.resolve()
    if real.parent == _kept().resolve() and key_of(digests(real, names)) != real.name:
        raise DigestMismatchError(
            f"{path} no longer holds the files that were taken into it: one was changed, added or removed.\n"
            "Remove the folder, and copy or import the model again.",
            path=str(path),
            files=(),
        )


def _kept() -> Path:
    return settings.HOME() / "models"

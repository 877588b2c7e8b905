"""A folder of the user's own, as a snapshot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvllm.errors import RequestError, SnapshotNotFoundError, SourceError
from medvllm.sources import home_models
from medvllm.sources.digest import hash_files
from medvllm.sources.fingerprint import Fingerprint
from medvllm.sources.json_files import read_json
from medvllm.sources.layout import decide_layout, list_files
from medvllm.sources.snapshot import Snapshot


def resolve_snapshot(
    path: Path, revision: str | None, *, extra: Sequence[str] = (), adapter: bool = False, fresh: bool = False
) -> Snapshot:
    """Return a folder as a snapshot, with the digests of its files.

    Args:
        path: The folder.
        revision: Must be None, as a folder has no revisions.
        extra: Globs for further files of the model.
        adapter: Whether the model is an adapter.
        fresh: Whether to hash files again that have not changed since they were hashed.

    Raises:
        RequestError: A revision was asked for.
        SnapshotNotFoundError: There is no such folder.
        SourceError: A file cannot be read, or changed while it was read.
        DigestMismatchError: A folder in MEDVLLM_HOME no longer holds what was copied into it.
    """
    if revision is not None:
        raise RequestError(
            f"Revision {revision!r} was asked for, but the folder {path} has no revisions.", option="revision"
        )
    _check_exists(path)
    # The stamps come first, so that a later change of folder or file shows.
    folder_stamps = Fingerprint.of([path, *sorted(inner for inner in path.glob("*") if inner.is_dir())])
    names = list_files(path)
    decided_by = Fingerprint()

    def read(name: str, kind: type) -> Any:
        nonlocal decided_by
        decided_by += Fingerprint.of([path / name])
        return read_json(path / name, kind)

    layout = decide_layout(path, names, read, extra=extra, adapter=adapter)
    home_models.check_folder(path, names)
    files, file_stamps = hash_files(path, layout.files, fresh=fresh)
    if changed := decided_by.changed_paths():
        raise SourceError(f"{changed[0]} changed while it was read.\nTry again when no program writes to it.")
    used = {str((path / name).parent) for name in files} | {str(path)}
    return Snapshot(path, None, None, layout, files, file_stamps, folder_stamps=folder_stamps.restrict_to(used))


def check_links(snapshot: Snapshot) -> None:
    """Check that no file of a folder is a link to a place outside of it.

    Links to the blobs beside a snapshot in the Hub's cache are allowed.

    Raises:
        SourceError: A link leads out of the folder.
    """
    root = snapshot.path.resolve()
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    for name in snapshot.files:
        file = (snapshot.path / name).resolve()
        if not (file.is_relative_to(root) or file.parent == blobs):
            raise SourceError(
                f"{snapshot.path / name} is a link that leads out of the folder, to {file}.\n"
                f"If that file is part of the model, copy it here: cp --remove-destination '{file}' "
                f"'{snapshot.path / name}'",
                path=str(snapshot.path),
            )


def _check_exists(path: Path) -> None:
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # the name is longer than the file system allows
        raise SnapshotNotFoundError(f"Folder '{str(path)[:80]}…' cannot be opened: {error.strerror}.") from error
    if is_folder:
        return
    advice = "Name the folder that holds config.json."
    if home_models.is_folder_name(path):
        advice = (
            "It is a copy in MEDVLLM_HOME, and this home does not have it.\n"
            "Bring it with medvllm export and medvllm import, or set the home that has it: export MEDVLLM_HOME=/path"
        )
    problem = "is a file, not a folder" if exists else "does not exist"
    raise SnapshotNotFoundError(f"Folder '{path}' {problem}.\n{advice}", path=str(path))

"""Folders of links that show a loader the files of a model and nothing else, in `MEDVLLM_HOME/views`.

A loader looks for more than the files of a model: adapters, other checkpoints, Python modules. It cannot read what is
not in the folder that it gets.
"""

import atexit
import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from medvllm import settings
from medvllm.errors import SourceError
from medvllm.files import is_trusted, make_own

_UNUSED_S = 30 * 86_400.0  # after this time without use, a folder of links is removed
_LEFT_S = 3_600.0  # after this time, one that is half made or whose files are gone belongs to no running process


def make_link_folder(files: Mapping[str, Path]) -> Path:
    """Return a folder with links to these files under these names, and nothing else. Equal calls give one folder.

    It is in MEDVLLM_HOME if this user can write there and others cannot. Otherwise it is a temporary folder of this
    process.

    Args:
        files: The files by the names of their links. A name may have folders in it.

    Raises:
        SourceError: Neither place can hold links.
    """
    links = {name: os.path.abspath(file) for name, file in files.items()}
    key = hashlib.sha256(repr(sorted(links.items())).encode()).hexdigest()[:40]
    room = settings.HOME() / "views"
    try:
        make_own(room)
        if not is_trusted(room):  # whoever can replace a link can have a file read that was never hashed
            raise OSError(f"others may write to {room}")
        return _find_or_make(room, key, links)
    except OSError:
        try:
            return _find_or_make(
                _temporary_folder(os.getpid(), os.geteuid() if hasattr(os, "geteuid") else 0), key, links
            )
        except OSError as error:
            raise SourceError(
                f"No folder of links can be made for a model: {error}.\n"
                "Set MEDVLLM_HOME to a folder on a disk that has symbolic links.",
            ) from error


def _find_or_make(room: Path, key: str, links: Mapping[str, str]) -> Path:
    target = room / key
    if _is_whole(target, links):
        with contextlib.suppress(OSError):  # it belongs to another user, and this one may only read it
            os.utime(target)
        return target
    _remove_old(room)
    work = room / f".{key}.{secrets.token_hex(4)}"
    try:
        make_own(work)
        for name, file in links.items():
            make_own((work / name).parent)
            (work / name).symlink_to(file)
        # If another process was first, its folder stays, because a loader may be reading it.
        if not (_rename(work, target) or _is_whole(target, links)):
            shutil.rmtree(target, ignore_errors=True)
            _rename(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not _is_whole(target, links):
        raise OSError(f"{target} does not hold the links that were made")
    return target


def _rename(work: Path, target: Path) -> bool:
    """Rename a folder. Return False if there is one of that name with something in it."""
    try:
        work.rename(target)
    except OSError:
        return False
    return True


def _is_whole(folder: Path, links: Mapping[str, str]) -> bool:
    """Return whether a folder holds these links and nothing else."""
    found = {}
    try:
        for where, folders, files in os.walk(folder):
            for name in (*files, *(name for name in folders if os.path.islink(os.path.join(where, name)))):
                path = os.path.join(where, name)
                found[os.path.relpath(path, folder).replace(os.sep, "/")] = os.readlink(path)
    except OSError:
        return False
    return found == links


def _remove_old(room: Path) -> None:
    """Remove folders of links that are unused, whose files are gone, or that a killed process left half made."""
    now = time.time()
    for entry in os.scandir(room):
        try:
            links = (path for path in Path(entry.path).rglob("*") if path.is_symlink())
            # Files that are missing here may exist on another machine or container with the same home folder.
            is_left = entry.name.startswith(".") or not all(path.exists() for path in links)
            age_s = now - entry.stat(follow_symlinks=False).st_mtime
            if age_s > (_LEFT_S if is_left else _UNUSED_S):
                shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:  # another process was first
            continue


@cache
def _temporary_folder(process: int, user: int) -> Path:
    """Return a folder that is removed when the process ends. A process that changes its user gets another one."""
    folder = Path(tempfile.mkdtemp(prefix="medvllm-views-"))

    def remove() -> None:
        if os.getpid() == process:  # not in a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder

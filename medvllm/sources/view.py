"""A folder that shows loaders the files of a model and nothing else: links, in `MEDVLLM_HOME/views`.

Loaders look for more than a model's files: adapters, other checkpoints, modules, whatever lies beside. What is not
in the folder that they are shown cannot be read.
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

_UNUSED_S = 30 * 86_400.0  # after which a view that nobody asked for goes
_LEFT_S = 3_600.0  # after which a view that is half made, or whose files are gone, is nobody's


def view(shown: Mapping[str, Path]) -> Path:
    """Return a folder that has these files under these names, and no other; equal ones are one folder.

    Without a home folder that can be written to, and by nobody else, it is a temporary one of this process.

    Raises:
        SourceError: Neither can hold links.
    """
    links = {name: os.path.abspath(file) for name, file in shown.items()}
    key = hashlib.sha256(repr(sorted(links.items())).encode()).hexdigest()[:40]
    room = settings.HOME() / "views"
    try:
        make_own(room)
        if not is_trusted(room):  # who can exchange a link has another file read than the one that was hashed
            raise OSError(f"others may write to {room}")
        return _made(room, key, links)
    except OSError:
        try:
            return _made(_temporary(os.getpid(), os.geteuid() if hasattr(os, "geteuid") else 0), key, links)
        except OSError as error:
            raise SourceError(
                f"No folder of links can be made for a model: {error}.\n"
                "Set MEDVLLM_HOME to a folder on a disk that has symbolic links.",
            ) from error


def _made(room: Path, key: str, links: Mapping[str, str]) -> Path:
    target = room / key
    if _is_whole(target, links):
        with contextlib.suppress(OSError):  # another user's, who may read it only
            os.utime(target)
        return target
    _sweep(room)
    work = room / f".{key}.{secrets.token_hex(4)}"
    try:
        make_own(work)
        for name, file in links.items():
            make_own((work / name).parent)
            (work / name).symlink_to(file)
        # Where another process was first, its folder stays: a loader may be reading it.
        if not (_renamed(work, target) or _is_whole(target, links)):
            shutil.rmtree(target, ignore_errors=True)
            _renamed(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not _is_whole(target, links):
        raise OSError(f"{target} is not what was put there")
    return target


def _renamed(work: Path, target: Path) -> bool:
    """Give a folder its name; False when there is one of that name, with something in it."""
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


def _sweep(room: Path) -> None:
    """Remove views whose files are gone, those that nobody has used for long, and what makers that died have left."""
    now = time.time()
    for entry in os.scandir(room):
        try:
            links = (path for path in Path(entry.path).rglob("*") if path.is_symlink())
            # Files that are gone here may be there for another machine or container with the same home folder.
            is_left = entry.name.startswith(".") or not all(path.exists() for path in links)
            age_s = now - entry.stat(follow_symlinks=False).st_mtime
            if age_s > (_LEFT_S if is_left else _UNUSED_S):
                shutil.rmtree(entry.path, ignore_errors=True)
        except OSError:  # another process was first
            continue


@cache
def _temporary(process: int, user: int) -> Path:
    """Return a folder of this process, and of the user that it has become, that goes when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="medvllm-views-"))

    def remove() -> None:
        if os.getpid() == process:  # not a fork's
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder

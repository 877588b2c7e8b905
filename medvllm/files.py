"""Files that are written whole or not at all."""

import os
import secrets
import shutil
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Write a file so that a reader, or the next process after a crash, sees the old content or all of the new."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def place(file: Path, target: Path, *, link: bool = True) -> None:
    """Give a file a second name, by a link or else a copy; `target` is whole at every moment."""
    partial = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.partial")
    try:
        try:
            if not link:
                raise OSError("a link would be the same file")
            os.link(file, partial)
        except OSError:  # another disk, or one without links
            with file.open("rb") as source, partial.open("xb") as out:
                shutil.copyfileobj(source, out)
                out.flush()
                os.fsync(out.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

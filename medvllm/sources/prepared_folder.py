"""Folders in `MEDVLLM_HOME/prepared`: what was computed from a model once, with a record of each file."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.atomic_folder import atomic_folder
from medvllm.files import is_trusted, make_own
from medvllm.sources.digest import Digest, digest_files, find_differences

RECORD = "prepared.json"


def prepared_folder(*key: Any) -> Path:
    """Return the folder for what is computed from everything in `key`."""
    text = json.dumps(key, sort_keys=True, default=repr)
    return settings.HOME() / "prepared" / hashlib.sha256(text.encode()).hexdigest()[:40]


def check_room(folder: Path, size_bytes: int) -> None:
    """Check that a folder can be made.

    Args:
        folder: The folder.
        size_bytes: The size of its content.

    Raises:
        OSError: There is no space for the content, or no permission.
    """
    make_own(folder.parent)
    if not is_trusted(folder.parent):
        raise OSError(f"other users may write to {folder.parent}")
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise OSError(f"this process may not write to {folder.parent}")
    if shutil.disk_usage(folder.parent).free < 2 * size_bytes:
        raise OSError(f"the disk of {folder.parent} has too little free space for it")


def write_prepared(
    folder: Path, made_of: Mapping[str, str], size_bytes: int, fill: Callable[[Path], tuple[str | None, dict[str, Any]]]
) -> None:
    """Fill a folder and record its files, unless it exists and every file of it is as recorded.

    Args:
        folder: The folder.
        made_of: The SHA-256 of the files that the content depends on, by name.
        size_bytes: The size of the content.
        fill: Writes the content into a folder. Returns why there cannot be any, and further facts for the record. With
            a reason, only the record is kept.

    Raises:
        OSError: There is no space for the content, or no permission.
    """
    check_room(folder, size_bytes)

    def fill_and_record(work: Path) -> None:
        rejection, facts = fill(work)
        if rejection:
            for file in work.iterdir():
                file.unlink()
        files = digest_files(work, [file.name for file in work.iterdir()])
        record = {
            **facts,
            "made_of": dict(made_of),
            "rejection": rejection,
            "files": {name: vars(digest) for name, digest in files.items()},
        }
        (work / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    atomic_folder(folder, is_complete=lambda made: read_prepared(made) is not None, fill=fill_and_record)


def read_prepared(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder, or None unless every file of it is as recorded."""
    try:
        # Whoever can write both a record and a file can make the two fit.
        if not (is_trusted(folder / RECORD) and is_trusted(folder)):
            return None
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recorded = recorded_files(record)
        if find_differences(recorded, digest_files(folder, list(recorded))):
            return None
        return record | {"rejection": record["rejection"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # SourceError, for a missing file, is an OSError
        return None


def recorded_files(record: Mapping[str, Any]) -> dict[str, Digest]:
    """Return the digests of the files of a folder, by name, as its record has them."""
    return {name: Digest(file["size"], file["sha256"]) for name, file in record["files"].items()}

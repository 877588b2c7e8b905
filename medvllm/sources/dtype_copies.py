"""Weights in another dtype than the checkpoint's: safetensors files in `MEDVLLM_HOME/prepared`, each with a record."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.atomic_folder import atomic_folder
from medvllm.files import is_trusted, make_own
from medvllm.sources.digest import Digest, digest_files, find_differences
from medvllm.sources.snapshot import Snapshot

RECORD = "prepared.json"


@dataclass(frozen=True)
class DtypeCopy:
    """One copy of a snapshot's weights in another dtype, whether it exists yet or not.

    Attributes:
        snapshot: The snapshot whose weights are copied.
        made_of: The SHA-256 of the files that the copy depends on, by name.
        folder: The folder of the copy.
    """

    snapshot: Snapshot
    made_of: Mapping[str, str]
    folder: Path

    @classmethod
    def of(cls, snapshot: Snapshot, **key: Any) -> "DtypeCopy":
        """Return the copy for a snapshot's config and weights and for everything else that it depends on, the `key`."""
        made_of = _files_made_of(snapshot)
        text = json.dumps([made_of, key], sort_keys=True, default=repr)
        return cls(snapshot, made_of, settings.HOME() / "prepared" / hashlib.sha256(text.encode()).hexdigest()[:40])

    def to_snapshot(self) -> Snapshot | None:
        """Return the snapshot with the copy in place of its weights, each byte checked. None if there is no copy."""
        record = _read_record(self.folder)
        return None if record is None or record["rejection"] else self.snapshot.with_weights(self.folder)

    def rejection(self) -> str | None:
        """Return why there cannot be such a copy, if an earlier attempt found a reason."""
        record = _read_record(self.folder)
        return None if record is None else record["rejection"]

    def write(self, size_bytes: int, fill: Callable[[Path], str | None]) -> None:
        """Write the copy unless it exists.

        Args:
            size_bytes: The size of the copy.
            fill: Writes the copy into a folder, or returns why there cannot be one. The reason is recorded.

        Raises:
            OSError: There is no space for the copy, or no permission.
        """
        make_own(self.folder.parent)
        if not is_trusted(self.folder.parent):
            raise OSError(f"other users may write to {self.folder.parent}")
        if shutil.disk_usage(self.folder.parent).free < 2 * size_bytes:
            raise OSError(f"the disk of {self.folder.parent} has too little free space for it")

        def fill_and_record(work: Path) -> None:
            rejection = fill(work)
            if rejection:
                for file in work.iterdir():
                    file.unlink()
            files = digest_files(work, [file.name for file in work.iterdir()])
            record = {
                "made_of": dict(self.made_of),
                "rejection": rejection,
                "files": {name: vars(digest) for name, digest in files.items()},
            }
            (work / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

        atomic_folder(self.folder, is_complete=lambda folder: _read_record(folder) is not None, fill=fill_and_record)

    def remove(self) -> None:
        """Remove the copy. A process that has it mapped keeps it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def list_copies(snapshot: Snapshot) -> list[DtypeCopy]:
    """Return the copies of a snapshot's weights on this machine. Their content is not checked."""
    made_of, found = _files_made_of(snapshot), []
    for file in (settings.HOME() / "prepared").glob(f"*/{RECORD}"):
        try:
            is_copy = json.loads(file.read_text(encoding="utf-8")).get("made_of") == made_of
        except (OSError, ValueError, AttributeError):
            continue
        if is_copy:
            found.append(DtypeCopy(snapshot, made_of, file.parent))
    return found


def _files_made_of(snapshot: Snapshot) -> dict[str, str]:
    """Return the SHA-256 of the files that a copy depends on: the config and the weights."""
    layout = snapshot.layout
    names = {*layout.weights, layout.index, f"{layout.root}config.json", f"{layout.root}generation_config.json"}
    made_of = {name: digest.sha256 for name, digest in snapshot.files.items() if name in names}
    return made_of | {name: digest.sha256 for name, digest in snapshot.converted.items()}


def _read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder, or None unless every file of it is as recorded."""
    try:
        # Whoever can write both a record and a file can make the two fit.
        if not (is_trusted(folder / RECORD) and is_trusted(folder)):
            return None
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recorded = {name: Digest(file["size"], file["sha256"]) for name, file in record["files"].items()}
        if find_differences(recorded, digest_files(folder, list(recorded))):
            return None
        return record | {"rejection": record["rejection"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # SourceError, for a missing file, is an OSError
        return None

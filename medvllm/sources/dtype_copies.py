"""Weights in another dtype than the checkpoint's: safetensors files in `MEDVLLM_HOME/prepared`, each with a record."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.sources.prepared_folder import RECORD, prepared_folder, read_prepared, write_prepared
from medvllm.sources.snapshot import Snapshot


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
        return cls(snapshot, made_of, prepared_folder(made_of, key))

    def to_snapshot(self) -> Snapshot | None:
        """Return the snapshot with the copy in place of its weights, each byte checked. None if there is no copy."""
        record = read_prepared(self.folder)
        return None if record is None or record["rejection"] else self.snapshot.with_weights(self.folder)

    def rejection(self) -> str | None:
        """Return why there cannot be such a copy, if an earlier attempt found a reason."""
        record = read_prepared(self.folder)
        return None if record is None else record["rejection"]

    def write(self, size_bytes: int, fill: Callable[[Path], str | None]) -> None:
        """Write the copy unless it exists.

        Args:
            size_bytes: The size of the copy.
            fill: Writes the copy into a folder, or returns why there cannot be one. The reason is recorded.

        Raises:
            OSError: There is no space for the copy, or no permission.
        """
        write_prepared(self.folder, self.made_of, size_bytes, lambda work: (fill(work), {}))

    def remove(self) -> None:
        """Remove the copy. A process that has it mapped keeps it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def list_copies(snapshot: Snapshot) -> list[DtypeCopy]:
    """Return the copies of a snapshot's weights on this machine. Their content is not checked."""
    made_of, found = _files_made_of(snapshot), []
    for file in (settings.HOME() / "prepared").glob(f"*/{RECORD}"):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            is_copy = record.get("made_of") == made_of and "engine" not in record
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

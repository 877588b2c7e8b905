"""Weights in another dtype than the checkpoint's, kept as a file beside a record of its digest. In `MEDVLLM_HOME`."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.files import is_trusted, make_own
from medvllm.sources import making
from medvllm.sources.digest import Digest, differences, digests
from medvllm.sources.snapshot import Snapshot

RECORD = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """The place for one such copy of a snapshot's weights."""

    snapshot: Snapshot
    made_of: Mapping[str, str]  # the files of the snapshot that it depends on -> SHA-256
    folder: Path

    @classmethod
    def of(cls, snapshot: Snapshot, **what: Any) -> "Prepared":
        """Return the place that is told by the digests of the snapshot's config and weights, and by `what`."""
        made_of = _made_of(snapshot)
        key = hashlib.sha256(json.dumps([made_of, what], sort_keys=True, default=repr).encode()).hexdigest()
        return cls(snapshot, made_of, settings.HOME() / "prepared" / key[:40])

    def find(self) -> Snapshot | None:
        """Return the snapshot with the copy in place of its weights, every byte of it checked; None: it is not here."""
        record = _read(self.folder)
        return None if record is None or record["unfit"] else self.snapshot.prepared(self.folder)

    def unfit(self) -> str | None:
        """Return why there can be no such copy, as it was found out before."""
        record = _read(self.folder)
        return None if record is None else record["unfit"]

    def keep(self, size_bytes: int, fill: Callable[[Path], str | None]) -> None:
        """Have the copy made once; `fill` writes it into a folder, or returns why there can be none: that is kept.

        OSError: there is no room for it, or no permission.
        """
        make_own(self.folder.parent)
        if not is_trusted(self.folder.parent):
            raise OSError(f"others may write to {self.folder.parent}")
        if shutil.disk_usage(self.folder.parent).free < 2 * size_bytes:
            raise OSError(f"the disk of {self.folder.parent} has no room for it")

        def filled(work: Path) -> None:
            unfit = fill(work)
            if unfit:
                for file in work.iterdir():
                    file.unlink()
            made = digests(work, [file.name for file in work.iterdir()])
            record = {
                "made_of": dict(self.made_of),
                "unfit": unfit,
                "files": {name: vars(digest) for name, digest in made.items()},
            }
            (work / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

        making.make(self.folder, is_whole=lambda folder: _read(folder) is not None, fill=filled)

    def drop(self) -> None:
        """Remove the copy; who has it mapped keeps it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def copies_of(snapshot: Snapshot) -> list[Prepared]:
    """Return the copies of a snapshot's weights that are here, whatever they hold."""
    made_of, found = _made_of(snapshot), []
    for file in (settings.HOME() / "prepared").glob(f"*/{RECORD}"):
        try:
            is_of = json.loads(file.read_text(encoding="utf-8")).get("made_of") == made_of
        except (OSError, ValueError, AttributeError):
            continue
        if is_of:
            found.append(Prepared(snapshot, made_of, file.parent))
    return found


def _made_of(snapshot: Snapshot) -> dict[str, str]:
    """Return the SHA-256 of the files that a copy depends on: of the config and the weights."""
    layout = snapshot.layout
    names = {*layout.weights, layout.index, f"{layout.root}config.json", f"{layout.root}generation_config.json"}
    made_of = {name: digest.sha256 for name, digest in snapshot.files.items() if name in names}
    return made_of | {name: digest.sha256 for name, digest in snapshot.converted.items()}


def _read(folder: Path) -> dict[str, Any] | None:
    """Return a folder's record, or None unless every file of it is there as recorded."""
    try:
        if not (
            is_trusted(folder / RECORD) and is_trusted(folder)
        ):  # who writes both a record and its file makes any of them fit
            return None
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recorded = {name: Digest(file["size"], file["sha256"]) for name, file in record["files"].items()}
        return None if differences(recorded, digests(folder, list(recorded))) else record | {"unfit": record["unfit"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # also what `digests` says of a missing file
        return None

"""An unpacked bundle: what it holds, and what this machine has of that already."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medvllm.errors import SourceError
from medvllm.metadata import ModelMetadata
from medvllm.names import parse_name
from medvllm.sources import home_models, hub
from medvllm.sources.bundle.export_record import ExportRecord
from medvllm.sources.digest import digest_files, find_differences
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.json_files import read_json
from medvllm.sources.layout import decide_layout
from medvllm.sources.locked_model import FOLDER, LockedModel

State = Literal["new", "damaged", "here"]


@dataclass(frozen=True)
class Bundle:
    """An unpacked bundle.

    Models go by their names in its lock: `name`, or `name@2` for a version that has a number.

    Attributes:
        entries: The catalogue entries, as TOML.
        locked: The files of each model.
        listings: The SHA-256 of the listing of each repository's commit.
        branches: The branch or tag by which a model was asked for.
        blobs: The folder of the files, each named after its SHA-256.
        sha256: The digest of the bundle's file.
        contents: The SHA-256 of the manifest. It stands for all models.
        export_record: Who exported the bundle, and when.
    """

    entries: str
    locked: Mapping[str, LockedModel]
    listings: Mapping[str, str]
    branches: Mapping[str, str]
    blobs: Path
    sha256: str
    contents: str
    export_record: ExportRecord

    def check(self, entries: Mapping[str, ModelMetadata]) -> None:
        """Check that each model's entry fits its files.

        Args:
            entries: The bundle's entries, parsed. A model without one is loaded by its name.

        Raises:
            SourceError: An entry has no files, or points to another repository, or a file belongs to no model.
        """
        if entries.keys() - self.locked.keys():
            raise SourceError(f"The bundle has an entry but no files of {min(entries.keys() - self.locked.keys())!r}.")
        for name, model in self.locked.items():
            entry = entries.get(name)
            location = parse_name(name if entry is None else entry.location)
            if model.source == FOLDER:
                fits = entry is not None
            else:
                fits = location.kind != "folder" and location.name == model.source
            if not fits:
                raise SourceError(
                    f"The bundle's {name!r} points to {location.text!r}, but its files are those of {model.source}."
                )
            self._check_files(name, model, entry)

    def state_of(self, name: str) -> State:
        """Return whether this machine has a model's files as the bundle has them. They are hashed."""
        model = self.locked[name]
        path = hub.snapshot_folder(model.source, model.commit) if model.commit else home_models.folder_of(model.files)
        present = [file for file in model.files if (path / file).is_file()]
        if not present:
            return "new"
        return "damaged" if find_differences(model.files, digest_files(path, present, fresh=True)) else "here"

    def conflicting_commit(self, name: str) -> str | None:
        """Return the commit that this machine has for a model's branch, if the bundle has another one."""
        model, branch = self.locked[name], self.branches.get(name)
        known = digest_cache().commit(hub.endpoint(), model.source, branch) if branch is not None else None
        return known if known != model.commit else None

    def _check_files(self, name: str, model: LockedModel, entry: ModelMetadata | None) -> None:
        """Raise SourceError unless the files of a model are exactly those that its loaders read."""

        def read(path: str, kind: type) -> Any:
            return read_json(self.blobs / model.files[path].sha256, kind)

        extra, adapter = ((), False) if entry is None else (entry.source.extra_files, entry.is_adapter)
        layouts = (
            decide_layout(Path(name), model.files, read, code=code, extra=extra, adapter=adapter)
            for code in (False, True)
        )
        # Python modules are not run until an entry trusts them, so both sets of files are valid.
        if sorted(model.files) not in (sorted(layout.files) for layout in layouts):
            raise SourceError(f"The bundle has files of {name[:80]!r} that no load reads.")

"""Who uses what medvllm keeps on the disk: entries, locks and running processes."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medvllm import settings
from medvllm.lazy import lazy
from medvllm.local_files import repository_folder
from medvllm.metadata import ModelMetadata
from medvllm.names import ModelRef, parse_name
from medvllm.sources import home_models
from medvllm.sources.digest import folder_key
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.fingerprint import read_stamp
from medvllm.sources.lock import Lock
from medvllm.sources.locked_model import LockedModel


@dataclass(frozen=True)
class Users:
    """Everything that may use what is on the disk.

    Attributes:
        entries: The entries of the catalogue, every version, by reference.
        running: The models in the memory of processes. Each has the name of the process and the identity of the
            snapshot, which is repo@commit or path@digest.
    """

    entries: Mapping[str, ModelMetadata]
    running: Sequence[tuple[str, str]]

    @lazy
    def lock(self) -> Lock:
        """The lock in use."""
        return Lock.current()

    @lazy
    def folders(self) -> list[tuple[str, Path]]:
        """The folders of models in use, each with its user."""
        found = [
            (name, folder) for name, entry in self.entries.items() for folder in _folders(parse_name(entry.location))
        ]
        for name, snapshot in self.running:
            source, _, told = snapshot.rpartition("@")
            is_folder = os.path.isabs(source)
            folders = _folders(parse_name(source if is_folder else f"hf://{source}"))
            found += [(name, folder) for folder in folders if is_folder or folder.name == told]
        return found

    @lazy
    def mapped(self) -> dict[str, str]:
        """The files of MEDVLLM_HOME that processes have mapped, if the operating system tells: path -> process."""
        found: dict[str, str] = {}
        home = f"{settings.HOME().resolve()}{os.sep}"
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with suppress(OSError, UnicodeDecodeError):
                for line in maps.read_text(encoding="utf-8").splitlines():
                    if (start := line.find(home)) >= 0:
                        found[line[start:]] = f"process {maps.parent.name}"
        return found

    def of_model(self, folder: Path) -> Iterator[str]:
        """Give the users of a folder in `MEDVLLM_HOME/models`."""
        yield from (name for name, used in self.folders if used.resolve() == folder.resolve())
        yield from self._locks(lambda model: model.commit is None and folder_key(model.files) == folder.name)
        yield from self._processes(folder)

    def of_copy(self, folder: Path, made_of: Mapping[str, str], roots: Sequence[Path] = ()) -> Iterator[str]:
        """Give the users of weights that were made of other files.

        Args:
            folder: The folder of the weights.
            made_of: The SHA-256 of these files, by name.
            roots: Further folders that may hold the files.
        """
        for name, used in self.folders:
            if made_of and all(_may_be((used, *roots), file, sha256) for file, sha256 in made_of.items()):
                yield name
        yield from self._locks(lambda model: made_of.items() <= _digests(model).items())
        yield from self._processes(folder)

    def _locks(self, fits: Callable[[LockedModel], bool]) -> Iterator[str]:
        yield from (f"lock of {name}" for name, model in self.lock.models.items() if fits(model))

    def _processes(self, folder: Path) -> Iterator[str]:
        inside = f"{folder.resolve()}{os.sep}"
        yield from (process for file, process in self.mapped.items() if file.startswith(inside))


def _digests(model: LockedModel) -> dict[str, str]:
    return {name: digest.sha256 for name, digest in {**model.files, **model.converted}.items()}


def _folders(location: ModelRef) -> list[Path]:
    """Return the folder of a model, or all of its commits in the Hub's cache."""
    if location.kind == "folder":
        return [home_models.locate(Path(location.name))]
    return list((repository_folder(location.name) / "snapshots").glob("*"))


def _may_be(folders: Iterable[Path], name: str, sha256: str) -> bool:
    """Return whether a folder has a file of this name, and its digest is unknown or the given one."""
    for folder in folders:
        with suppress(OSError):
            file = read_stamp(folder / name)
            if digest_cache().digests([file]).get(file, sha256) == sha256:
                return True
    return False

"""Copies of models that medvllm owns: folders in `MEDVLLM_HOME/models`, each named after the digests of its files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from medvllm import settings
from medvllm.atomic_folder import atomic_folder
from medvllm.errors import DigestMismatchError, SourceError
from medvllm.files import link_or_copy, make_own
from medvllm.names import is_digest
from medvllm.sources.digest import Digest, describe_flaws, digest_files, find_differences, folder_key
from medvllm.sources.layout import list_files


def folder_of(files: Mapping[str, Digest]) -> Path:
    """Return the folder in MEDVLLM_HOME for these files, whether it exists or not."""
    return _models() / folder_key(files)


def locate(path: Path) -> Path:
    """Return a folder's present path: a copy in a home that was moved since is looked for in the present home."""
    if path.parent.name == "models" and is_digest(path.name) and not path.is_dir():
        return _models() / path.name
    return path


def is_folder_name(path: Path) -> bool:
    """Return whether a path is one that `folder_of` gives."""
    return path.parent == _models() and is_digest(path.name)


def add_folder(files: Mapping[str, Path], wanted: Mapping[str, Digest], *, link: bool) -> Path:
    """Return a folder in MEDVLLM_HOME with these files. One that has them already stays as it is.

    Args:
        files: The files by their path in the folder.
        wanted: Their digests.
        link: Whether hard links will do, because nobody else writes to the files.

    Raises:
        SourceError: The files changed while they were copied.
    """
    target = folder_of(wanted)

    def is_complete(folder: Path) -> bool:
        present = [name for name in list_files(folder) if (folder / name).is_file()]
        return bool(present) and not find_differences(wanted, digest_files(folder, present, fresh=True))

    def fill(work: Path) -> None:
        for name, file in files.items():
            make_own((work / name).parent)
            link_or_copy(file, work / name, link=link)
        if not link and (flaws := find_differences(wanted, digest_files(work, files))):
            raise SourceError(f"The files changed while they were copied: {describe_flaws(flaws)}.")

    atomic_folder(target, is_complete=is_complete, fill=fill)
    return target


def check_folder(path: Path, names: Sequence[str]) -> None:
    """Check that a folder of `add_folder` still holds the files that it is named after. Other folders pass.

    Raises:
        DigestMismatchError: A file was changed, added or removed.
    """
    real = path.resolve()
    if real.parent == _models().resolve() and folder_key(digest_files(real, names)) != real.name:
        raise DigestMismatchError(
            f"{path} no longer holds the files that were copied into it: a file was changed, added or removed.\n"
            "Remove the folder, and copy or import the model again.",
            path=str(path),
            files=(),
        )


def _models() -> Path:
    return settings.HOME() / "models"

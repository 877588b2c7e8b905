"""The names whose files may be on this machine, found from what its disks have: there may be 100,000 entries."""

import os
from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import suppress

from medvllm import settings
from medvllm.errors import ModelNameError
from medvllm.local_files import hub_cache, name_in_cache
from medvllm.names import parse_name

_FEW = 8  # folders that are asked for one by one


class _Folder:
    """A folder with folders that entries name, or that have such folders below them."""

    def __init__(self) -> None:
        self.names: dict[str, tuple[str, ...]] = {}  # of the entries whose files are in a folder of this one
        self.folders: dict[str, _Folder] = {}


class LocalNames:
    """Where the files of entries would be, kept for as long as the catalogue does not change.

    A look at the disk then costs what is there, not what the catalogue has.
    """

    def __init__(self) -> None:
        self._kept: tuple[Hashable, _Places] | None = None  # replaced as one, so no lock is needed

    def find(self, locations: Iterable[tuple[str, str | None]], token: Hashable) -> set[str]:
        """Return the names whose files may be here: their folder exists, or one of their repository in the Hub's cache.

        Args:
            locations: The names with their `model_path`. A name may have several. They are read only after a change.
            token: Changes with the catalogue.
        """
        token = token, settings.HOME()  # some folders are in it
        kept = self._kept
        if kept is None or kept[0] != token:
            self._kept = kept = token, _Places(locations)
        return set(kept[1].present())


class _Places:
    def __init__(self, locations: Iterable[tuple[str, str | None]]) -> None:
        self._root = _Folder()
        self._folders: dict[str, _Folder] = {}  # by their path
        self._unsure: list[str] = []  # names whose location cannot be told from others
        self._repositories: dict[str, list[str]] = {}  # by the name of the repository's folder in the cache
        for name, location in locations:
            self._add(name, location or name)

    def present(self) -> Iterator[str]:
        """Yield the names whose folder, or whose repository's, exists."""
        yield from self._unsure
        yield from _present(self._root, "/")
        for folder in _existing(os.fspath(hub_cache()), self._repositories):
            yield from self._repositories[folder]

    def _add(self, name: str, location: str) -> None:
        # Parsing each would take seconds.
        if location[0] == "/" and "/." not in location:
            self._add_folder(name, location)
        elif location[0] in "/.~" or "@" in location or ":" in location:
            with suppress(ModelNameError):
                ref = parse_name(location)
                (self._add_folder if ref.kind == "folder" else self._add_repository)(name, ref.name)
        else:
            self._add_repository(name, location)

    def _add_repository(self, name: str, repo: str) -> None:
        self._repositories.setdefault(name_in_cache(repo), []).append(name)

    def _add_folder(self, name: str, path: str) -> None:
        above, _, own = path.rstrip("/").rpartition("/")
        if not own:
            self._unsure.append(name)
            return
        folder = self._folders.get(above)
        if folder is None:
            folder = self._root
            for part in filter(None, above.split("/")):
                folder = folder.folders.setdefault(part, _Folder())
            self._folders[above] = folder
        folder.names[own] = (*folder.names.get(own, ()), name)


def _present(folder: _Folder, path: str) -> Iterator[str]:
    for own in _existing(path, folder.names):
        yield from folder.names[own]
    for part in _existing(path, folder.folders):
        yield from _present(folder.folders[part], os.path.join(path, part))


def _existing(path: str, wanted: Collection[str]) -> list[str]:
    """Return which of some folders exist in a folder; all of them if it cannot be listed and they are many."""
    if len(wanted) <= _FEW:
        return [part for part in wanted if os.path.exists(os.path.join(path, part))]
    try:
        return [part for part in os.listdir(path) if part in wanted]
    except PermissionError:
        return list(wanted)
    except OSError:
        return []

"""Where the stored catalogue is, and whether its file exists.

A file that MEDVLLM_CATALOG names and that does not exist is an error, and not an empty catalogue.
"""

import os
import stat
from functools import cache
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.errors import CatalogError

TEXTS = settings.Texts(settings.HOME, settings.CATALOG)
_CREATE = "To create a new, empty catalogue: medvllm catalog init"


@cache
def location(texts: tuple[Any, ...]) -> Path | str:
    """Return the SQLite file or the URL that the settings name.

    It is cached by the texts of the settings, because parsing a path would take longer than the rest of a cache hit.
    """
    return settings.CATALOG() or settings.HOME() / "catalog.db"


def is_named() -> bool:
    """Return whether MEDVLLM_CATALOG is set. The default file is created when it is first needed."""
    return settings.CATALOG() is not None


def has_content(file: Path) -> bool:
    """Return whether a file exists and is not empty, without raising an error."""
    try:
        status = os.stat(file)
    except OSError:
        return False
    return status.st_size > 0 and stat.S_ISREG(status.st_mode)


def is_there(file: Path, *, named: bool) -> bool:
    """Return whether there is a file to read.

    Args:
        file: The file.
        named: Whether a user named the file. Then it must exist: otherwise an unmounted disk or a typing error would
            make other models answer.

    Raises:
        CatalogError: A named file does not exist, or the path is not a regular file.
    """
    try:
        status = os.stat(file)
    except FileNotFoundError:
        if (link := _dangling(file)) is not None:
            raise _missing(file, f"{link} is a link to {os.readlink(link)}, which does not exist") from None
        if named:
            folder = next((path for path in reversed(file.parents) if not path.exists()), None)
            raise _missing(file, f"there is no {'file' if folder is None else f'folder {folder}'}") from None
        return False
    except NotADirectoryError:
        wrong = next((path for path in reversed(file.parents) if path.exists() and not path.is_dir()), file.parent)
        raise CatalogError(
            f"Catalogue {file} cannot be read: {wrong} is a file, not a folder.\n"
            f"Use a {'file in a folder' if named else 'folder'}: export "
            + (f"{settings.CATALOG.name}=/srv/catalog.db" if named else f"{settings.HOME.name}=~/.medvllm"),
            path=str(file),
        ) from None
    except OSError as error:
        raise CatalogError(f"Catalogue {file} cannot be read: {error}.", path=str(file)) from error
    if not stat.S_ISREG(status.st_mode):
        is_folder = stat.S_ISDIR(status.st_mode)
        what, other = ("a folder", file / "catalog.db") if is_folder else ("not a regular file", "/srv/catalog.db")
        raise CatalogError(
            f"Catalogue {file} cannot be read: it is {what}.\n"
            f"Set a SQLite file: export {settings.CATALOG.name}={other}",
            path=str(file),
        )
    if named and not status.st_size:
        raise _missing(file, "the file is empty")
    return status.st_size > 0


def _dangling(file: Path) -> Path | None:
    """Return the link, among a file and the folders above it, whose target does not exist."""
    return next((path for path in reversed((file, *file.parents)) if path.is_symlink() and not path.exists()), None)


def _missing(file: Path, why: str) -> CatalogError:
    return CatalogError(
        f"Catalogue {file} does not exist: {why}.\nIf it is on a disk or share, mount it first. {_CREATE}",
        path=str(file),
    )

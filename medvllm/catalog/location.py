"""Where the stored catalogue is, and whether it is there: one that was named and is missing is not an empty one."""

import os
import stat
from functools import cache
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.errors import CatalogError

TEXTS = settings.Texts(settings.HOME, settings.CATALOG)
_MAKE = "To make a new, empty one: medvllm catalog init"


@cache
def location(texts: tuple[Any, ...]) -> Path | str:
    """Return the database that the settings name, for their texts of the moment.

    By these texts: parsing a path anew would cost a hit more than all the rest of it.
    """
    return settings.CATALOG() or settings.HOME() / "catalog.db"


def is_named() -> bool:
    """Return whether MEDVLLM_CATALOG says where the catalogue is; else it is made where it is first needed."""
    return settings.CATALOG() is not None


def has_content(file: Path) -> bool:
    """Return whether there is something in a file, without a word on why not."""
    try:
        status = os.stat(file)
    except OSError:
        return False
    return status.st_size > 0 and stat.S_ISREG(status.st_mode)


def is_there(file: Path, *, named: bool) -> bool:
    """Return whether there is a file to read; CatalogError: there should be, or something is in its place.

    A file that was `named` must be there: else a disk that is not mounted, or a slip, would make other models answer.
    """
    try:
        status = os.stat(file)
    except FileNotFoundError:
        if (link := _dangling(file)) is not None:
            raise _missing(file, f"{link} is a link to {os.readlink(link)}, which is not there") from None
        if named:
            folder = next((path for path in reversed(file.parents) if not path.exists()), None)
            raise _missing(file, f"there is no {'file' if folder is None else f'folder {folder}'}") from None
        return False
    except NotADirectoryError:
        wrong = next((path for path in reversed(file.parents) if path.exists() and not path.is_dir()), file.parent)
        raise CatalogError(
            f"Catalogue {file} cannot be read: {wrong} is a file, not a folder.\n"
            "Name a file in a folder: export "
            + (f"{settings.CATALOG.name}=/srv/catalog.db" if named else f"{settings.HOME.name}=~/.medvllm"),
            path=str(file),
        ) from None
    except OSError as error:
        raise CatalogError(f"Catalogue {file} cannot be read: {error}.", path=str(file)) from error
    if not stat.S_ISREG(status.st_mode):
        is_folder = stat.S_ISDIR(status.st_mode)
        what, other = ("a folder", file / "catalog.db") if is_folder else ("no regular file", "/srv/catalog.db")
        raise CatalogError(
            f"Catalogue {file} cannot be read: it is {what}.\n"
            f"Name a SQLite file: export {settings.CATALOG.name}={other}",
            path=str(file),
        )
    if named and not status.st_size:
        raise _missing(file, "the file is empty")
    return status.st_size > 0


def _dangling(file: Path) -> Path | None:
    """Return the link, among a file and the folders above it, whose target is not there."""
    return next((path for path in reversed((file, *file.parents)) if path.is_symlink() and not path.exists()), None)


def _missing(file: Path, why: str) -> CatalogError:
    return CatalogError(
        f"Catalogue {file} is not there: {why}.\nIf it is on a disk or share, mount that first. {_MAKE}", path=str(file)
    )

"""Reads a folder of notes: each .txt file is one text."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from medvllm.corpora.reading.lines import MAX_BYTES, check_kind, decode, too_long, without_marks
from medvllm.corpora.rows import BadRow, Row, row_or_bad
from medvllm.errors import RequestError

_ENDING = ".txt"


class Notes(NamedTuple):
    """The notes of a folder.

    Attributes:
        names: Their relative paths.
        warning: How many other files are left out; None if there is none.
    """

    names: list[str]
    warning: str | None


def find_notes(folder: Path) -> Notes:
    """Return the notes in a folder and the folders inside it, in the order of their names.

    Hidden files and folders, whose names begin with a dot, are left out, as a shell's `*` does. A link to a file is
    followed; a link to a folder is not.

    Raises:
        RequestError: There is no note, or a folder cannot be read.
    """
    found: list[str] = []
    others = 0
    for path, folders, names in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(_ENDING) and not name.startswith("."):
                found.append(Path(path, name).relative_to(folder).as_posix())
            else:
                others += not name.startswith(".")
    if not found:
        raise RequestError(
            f"There is no {_ENDING} file in folder {str(folder)!r}.\nName the notes with the ending .txt."
        )
    warning = f"Files of {str(folder)!r} that do not end with {_ENDING} are left out: {others}." if others else None
    return Notes(sorted(found), warning)


def read_notes(folder: Path, names: list[str]) -> Iterator[Row | BadRow]:
    """Yield a row for each note, exactly as it is written. Its id is its relative path."""
    for name in names:
        yield row_or_bad(_read_note, folder, name, place=f"file {str(folder / name)!r}")


def _read_note(folder: Path, name: str, place: str) -> Row:
    try:
        with open(folder / name, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"Texts cannot be read from {place}: {error.strerror}.") from error
    if len(raw) > MAX_BYTES:
        raise too_long(place)
    check_kind(raw, place)
    return Row(decode(without_marks(raw), place), place, name)


def _refuse_folder(error: OSError) -> None:
    raise RequestError(f"Folder {os.fsdecode(error.filename)!r} cannot be read: {error.strerror}.") from error

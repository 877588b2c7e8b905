"""Reads folders that the package `datasets` of Hugging Face has written with `save_to_disk`."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from os import SEEK_END
from pathlib import Path
from shlex import quote
from typing import Any

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.record_batches import BATCH_ROWS, read_batches
from medvllm.corpora.rows import BadRow, Row
from medvllm.errors import MissingDependencyError, RequestError

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_INDICES = ("_indices_files", "_indices_data_files")  # of old versions: which rows are meant; no longer read
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow


def is_dataset(folder: Path) -> bool:
    """Return whether a folder is a saved `Dataset` or `DatasetDict`."""
    return _is_one_split(folder) or (folder / _SPLITS).is_file()


def open_dataset(folder: Path, where: str) -> Any:
    """Return the `Dataset` in a folder, or the only one of a `DatasetDict`. Its files are mapped, not copied.

    Raises:
        RequestError: It is damaged, has several splits, or is of a version that cannot be read.
        MissingDependencyError: The package `datasets` is not installed.
    """
    if not _is_one_split(folder):
        folder = _find_split(folder, where)
    state = _read_json(folder / _STATE, where)
    if any(state.get(name) for name in _INDICES):
        raise RequestError(
            f"The dataset in {where} was saved by an old version of datasets, with a list of the rows that are meant.\n"
            "Save it again with that version: dataset.flatten_indices().save_to_disk(FOLDER)"
        )
    try:
        from datasets import Dataset
    except ImportError as error:
        raise MissingDependencyError(
            f"The dataset in {where} needs the package datasets.\nInstall it with: pip install datasets",
            package="datasets",
        ) from error
    try:
        dataset = Dataset.load_from_disk(str(folder.absolute()))
    except Exception as error:  # its files may hold anything
        kind = type(error).__name__
    else:
        if all(_is_whole(folder / file["filename"]) for file in state["_data_files"]):
            return dataset
        raise _damaged(where)
    raise RequestError(  # raised here, not in the handler: that error may hold a text
        f"The dataset in {where} cannot be read with datasets {version('datasets')}: {kind}.\n"
        f"See why: python -c 'import datasets, sys; datasets.load_from_disk(sys.argv[1])' {quote(str(folder))}"
    )


def read_dataset(dataset: Any, where: str, columns: Columns) -> Iterator[Row | BadRow]:
    """Yield the rows of a dataset, as Arrow has them. Only some of them are in memory.

    Raises:
        RequestError: It is damaged, or has other columns.
    """

    def open_batches(wanted: list[str]) -> Iterator[Any]:
        return iter(dataset.with_format("arrow", columns=wanted).iter(BATCH_ROWS))

    return read_batches(dataset.column_names, open_batches, where, columns, _damaged(where))


def _is_one_split(folder: Path) -> bool:
    return (folder / _STATE).is_file() and (folder / _INFO).is_file()


def _find_split(folder: Path, where: str) -> Path:
    """Return the folder of the only split."""
    splits = _read_json(folder / _SPLITS, where).get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise _damaged(where)
    folders: list[Path] = [folder / name for name in splits]
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise RequestError(f"The dataset in {where} has no split.\nSave it again with save_to_disk.")
    raise RequestError(
        f"The dataset in {where} has {len(splits)} splits: {', '.join(map(repr, splits))}.\n"
        f"Name the folder of one: {str(folders[0])!r}",
        candidates=tuple(map(str, folders)),
    )


def _is_whole(file: Path) -> bool:
    """Return whether a stream of Arrow has its end. Without it, Arrow reads the batches that are left."""
    with file.open("rb") as stream:
        stream.seek(-len(_END), SEEK_END)
        return stream.read() == _END


def _read_json(file: Path, where: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _damaged(where)
    return found


def _damaged(where: str) -> RequestError:
    return RequestError(f"The dataset in {where} cannot be read: it is damaged.\nSave it again with save_to_disk.")

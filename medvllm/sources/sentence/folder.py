"""The files of a folder, as far as a declaration needs them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from medvllm.sources.json_files import read_json
from medvllm.sources.sentence.fields import Fields, Refused


class ModelFiles(Protocol):
    """A snapshot, as far as a declaration needs it."""

    @property
    def files(self) -> Mapping[str, Any]: ...
    @property
    def root(self) -> str: ...
    def file(self, name: str) -> Path: ...


def read_fields(model: ModelFiles, file: str) -> Fields:
    """Return the fields of a config file, which are none if the folder has no such file."""
    return Fields(file, read_json(model.file(file)) if file in model.files else {})


def read_module_fields(model: ModelFiles, path: str, *, optional: bool = False) -> Fields:
    """Return the fields of a module's config.json. Raise Refused if the file is missing and not `optional`."""
    file = f"{path or '.'}/config.json"
    if not (path and file in model.files) and not optional:
        raise Refused(f"has no {file} of that module")
    return read_fields(model, file) if path else Fields(file, {})

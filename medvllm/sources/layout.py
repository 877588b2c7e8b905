"""Which files of a folder or commit belong to a model. This is decided here and nowhere else, from what loaders read.

These files, and no others, are hashed, locked, verified, exported, fetched from the Hub, and shown to the loaders.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeGuard

from medvllm.errors import IncompleteSnapshotError, SourceError
from medvllm.sources.tokenizer_files import tokenizer_files

__all__ = ["ADAPTER_CONFIG", "SENTENCE_CONFIGS", "Layout", "ReadJson", "decide_layout", "is_plain_path", "list_files"]

ReadJson = Callable[[str, type], Any]  # a path in the folder, and `dict` or `list` -> the content of the JSON file

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_INDEX = ".index.json"
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# The names that sentence-transformers has given to the file beside a Transformer's config. The first one with content
# is read.
SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Model types of transformers with further weight files. A test compares the table with transformers.
_FURTHER_WEIGHTS = {"jev": ("head.safetensors", "readout.safetensors")}


@dataclass(frozen=True)
class Layout:
    """The files of a model, each by its path in the folder or commit.

    Attributes:
        root: The folder of the config, with a trailing slash, or "" for the top.
        weights: The weight files of the model, in order, without their index.
        index: The index of the weight files, if they are sharded.
        modules: The weight files of sentence-transformers modules, which follow the model.
        is_adapter: Whether the files are an adapter, which completes the weights of another model.
        adapter: An adapter's weights beside the weights of a whole model.
        files: All files of the model, sorted.
        names: All files of the folder or commit, for messages.
    """

    root: str
    weights: tuple[str, ...]
    index: str | None
    modules: tuple[str, ...]
    is_adapter: bool
    adapter: str | None
    files: tuple[str, ...]
    names: tuple[str, ...] = field(compare=False, repr=False)

    @property
    def config(self) -> str:
        """The path of the config: config.json, or adapter_config.json for an adapter."""
        return f"{self.root}{ADAPTER_CONFIG if self.is_adapter else 'config.json'}"

    @property
    def pickles(self) -> tuple[str, ...]:
        """The weight files that are pickles, with their index. No loader sees them."""
        files = tuple(name for name in (*self.weights, *self.modules) if not name.endswith(".safetensors"))
        return (*files, self.index) if self.index and set(files) & set(self.weights) else files

    @property
    def top(self) -> dict[str, str]:
        """The files by the names that a loader sees, with the config at the top."""
        return {name.removeprefix(self.root): name for name in self.files}


def decide_layout(
    where: Path,
    names: Collection[str],
    read: ReadJson,
    *,
    code: bool = False,
    extra: Sequence[str] = (),
    adapter: bool = False,
) -> Layout:
    """Return which files of a folder or commit belong to the model.

    Args:
        where: The folder, for messages.
        names: The paths of all files in it.
        read: Returns the content of one of its JSON files.
        code: Whether the Python modules beside the config belong to the model.
        extra: Globs for further files, which the entry names because a class of the user's own reads them.
        adapter: Whether the model is an adapter: the entry names its base.

    Raises:
        IncompleteSnapshotError: An index or the config names weight files that do not exist.
        SourceError: A JSON file cannot be read, or names a file outside of the folder.
    """
    modules = _modules(where, names, read)
    root = next((path for kind, path in modules if kind == "Transformer"), "")
    config_name = ADAPTER_CONFIG if adapter else "config.json"
    if f"{root}{config_name}" not in names:
        root = ""
    own = {name.removeprefix(root) for name in names if name.startswith(root)}

    def content(name: str) -> dict[str, Any]:
        found: dict[str, Any] = read(root + name, dict) if name in own else {}
        return found

    config, tokenizer_config = ({} if adapter else content("config.json")), content("tokenizer_config.json")
    if adapter:
        weights, index = tuple(name for name in _ADAPTER_WEIGHTS if name in own)[:1], None
    else:
        weights, index = _weights(where / root, own, config, content)
    files: set[str] = {name for name in (config_name, "generation_config.json") if name in own}
    files.update(weights, (index,) if index else (), tokenizer_files(own, config, tokenizer_config))
    files.update(_versions(where / root, own, config, "configuration_files"))
    files.update(_versions(where / root, own, tokenizer_config, "fast_tokenizer_files"))
    if code:
        files.update(name for name in own if name.endswith(".py") and "/" not in name)
    whole = {root + name for name in files}
    behind: list[str] = []
    if "modules.json" in names:  # even if nothing in it is supported, as the vectors are then refused
        whole.update(name for name in ("modules.json", "config_sentence_transformers.json") if name in names)
        whole.update(root + name for name in SENTENCE_CONFIGS if name in own)
        for path in (path for kind, path in modules if kind != "Transformer" and path):
            found = [f"{path}{name}" for name in ("model.safetensors", "pytorch_model.bin") if f"{path}{name}" in names]
            behind += found[:1]
            whole.update(name for name in (f"{path}config.json",) if name in names)
    for pattern in extra:
        chosen = [name for name in names if fnmatchcase(name, pattern)]
        if not chosen:
            raise IncompleteSnapshotError(
                f"{where} has no file {pattern!r}, but the entry lists it in extra_files.",
                path=str(where),
                missing=(pattern,),
            )
        whole.update(chosen)
    beside = None
    if not adapter and weights and ADAPTER_CONFIG in own:
        beside = next((root + name for name in sorted(own) if fnmatchcase(name, "adapter_model.*")), None)
    return Layout(
        root,
        tuple(root + name for name in weights),
        None if index is None else root + index,
        tuple(behind),
        adapter,
        beside,
        tuple(sorted(whole | set(behind))),
        tuple(sorted(names)),
    )


def list_files(folder: Path) -> list[str]:
    """Return the paths of the files in a folder and its subfolders. No loader looks into deeper folders.

    A broken link counts as a file: the file that it points to is missing, and must not be taken for one that never
    existed.

    Raises:
        OSError: The folder may not be read.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.scandir(folder).close()  # glob would give nothing for a folder that may not be read
    files = (file for pattern in ("*", "*/*") for file in folder.glob(pattern))
    return [file.relative_to(folder).as_posix() for file in files if file.is_file() or _is_broken(file)]


def _is_broken(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def is_plain_path(path: object) -> TypeGuard[str]:
    """Return whether a path stays inside the folder that it is joined to, on every operating system."""
    if not isinstance(path, str):
        return False
    parts = path.split("/")
    return len(path) <= 1000 and not {"", ".", ".."} & set(parts) and not re.search(r"[\\:\x00-\x1f\x7f]", path)


def _weights(
    where: Path, own: Collection[str], config: Mapping[str, Any], read: Callable[[str], dict[str, Any]]
) -> tuple[tuple[str, ...], str | None]:
    """Return the weight files, in order, and their index. They are looked for as transformers does."""
    stated = config.get("transformers_weights")
    if stated is not None and not is_plain_path(stated):
        raise SourceError(f"The config of {where} names weights outside of its folder.", path=str(where))
    found = next((name for name in ((stated,) if stated else _WEIGHTS) if name in own), None)
    if found is None:
        if stated:
            raise _missing(where, [stated])
        return (), None
    index = found if found.endswith(_INDEX) else None
    weights = _shards(where / found, read(found)) if index else [found]
    kind = config.get("model_type")
    weights += [name for name in _FURTHER_WEIGHTS.get(kind if isinstance(kind, str) else "", ()) if name in own]
    if missing := [name for name in weights if name not in own]:
        raise _missing(where, missing)
    return tuple(weights), index


def _shards(index: Path, content: Mapping[str, Any]) -> list[str]:
    """Return the files that an index lists, in order."""
    listed = content.get("weight_map")
    if isinstance(listed, dict) and listed and all(isinstance(shard, str) for shard in listed.values()):
        shards = sorted({shard.removeprefix("./") for shard in listed.values()})
        if all(is_plain_path(shard) and not shard.endswith(_INDEX) for shard in shards):
            return shards
    raise SourceError(f"{index} does not list the shards of a checkpoint.", path=str(index))


def _missing(where: Path, names: Sequence[str]) -> IncompleteSnapshotError:
    return IncompleteSnapshotError(
        f"{where} is incomplete: {', '.join(names[:3])} {'is' if len(names) == 1 else 'are'} missing.",
        path=str(where),
        missing=tuple(names),
    )


def _versions(where: Path, own: Collection[str], config: Mapping[str, Any], field: str) -> Iterator[str]:
    """Give the files that a config lists for versions of transformers. Its loader reads one of them."""
    listed = config.get(field) or []
    for name in listed if isinstance(listed, list) else (None,):
        if not is_plain_path(name):
            raise SourceError(f"{where} lists a file outside of its folder under {field!r}.", path=str(where))
        if name in own:
            yield name


def _modules(where: Path, names: Collection[str], read: ReadJson) -> list[tuple[str, str]]:
    """Return the class name and the folder of each module in modules.json. A folder ends with a slash, or is ""."""
    if "modules.json" not in names:
        return []
    found = []
    for module in read("modules.json", list):
        kind, path = (module.get("type"), module.get("path", "")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str):  # a file of another tool
            continue
        if path != "" and (not is_plain_path(path) or "/" in path):
            raise SourceError(f"{where / 'modules.json'} names a folder outside of the model's.", path=str(where))
        found.append((kind.rpartition(".")[2], f"{path}/" if path else ""))
    return found

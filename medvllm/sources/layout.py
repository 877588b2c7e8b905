"""Which files of a folder or commit are a model's: decided once, from what its loaders read.

What is decided here is hashed, locked, verified, exported, fetched from a Hub, and shown to the loaders. Nothing else
is.
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
from medvllm.sources.vocabulary import tokenizer_files

__all__ = ["SENTENCE_CONFIGS", "Layout", "Read", "decide", "is_plain_path", "present"]

Read = Callable[[str, type], Any]  # a path in the folder, and what the JSON file holds -> its content

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_INDEX = ".index.json"
# What sentence-transformers has called the file beside a Transformer's config; the first one with content is read.
SENTENCE_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Classes of transformers whose config names further weights; a test holds the table to it.
_FURTHER_WEIGHTS = {"jev": ("head.safetensors", "readout.safetensors")}


@dataclass(frozen=True)
class Layout:
    """The files of a model, by path. `weights` are the model's own, in order, without their index.

    `root` is the folder of config.json, with a slash behind it, or "" for the top. `modules` are weights that stand
    behind the model: those of sentence-transformers' modules. `adapter`: one lies beside whole weights. `names` are all
    files of the folder or commit, for messages.
    """

    root: str
    weights: tuple[str, ...]
    index: str | None
    modules: tuple[str, ...]
    adapter: str | None
    files: tuple[str, ...]
    names: tuple[str, ...] = field(compare=False, repr=False)

    @property
    def pickles(self) -> tuple[str, ...]:
        """Weights that are pickles, with the index of theirs: no loader sees them."""
        files = tuple(name for name in (*self.weights, *self.modules) if not name.endswith(".safetensors"))
        return (*files, self.index) if self.index and set(files) & set(self.weights) else files

    @property
    def top(self) -> dict[str, str]:
        """The files by the name under which a loader finds them: config.json lies at the top of what it is shown."""
        return {name.removeprefix(self.root): name for name in self.files}


def decide(where: Path, names: Collection[str], read: Read, *, code: bool = False, extra: Sequence[str] = ()) -> Layout:
    """Return the layout of a folder or commit.

    Args:
        where: The folder, for messages.
        names: Its files, by path.
        read: Gives the content of one of its JSON files.
        code: Whether the Python modules beside the config belong to the model.
        extra: Globs for files that the entry adds, for a class of the user's own that reads them.

    Raises:
        IncompleteSnapshotError: An index or the config names weights that are not there.
        SourceError: A file that decides cannot be read, or names a file outside of the folder.
    """
    modules = _modules(where, names, read)
    root = next((path for kind, path in modules if kind == "Transformer"), "")
    if f"{root}config.json" not in names:
        root = ""
    own = {name.removeprefix(root) for name in names if name.startswith(root)}

    def content(name: str) -> dict[str, Any]:
        found: dict[str, Any] = read(root + name, dict) if name in own else {}
        return found

    config, tokenizer_config = content("config.json"), content("tokenizer_config.json")
    weights, index = _weights(where / root, own, config, content)
    files: set[str] = {name for name in ("config.json", "generation_config.json") if name in own}
    files.update(weights, (index,) if index else (), tokenizer_files(own, config, tokenizer_config))
    files.update(_versions(where / root, own, config, "configuration_files"))
    files.update(_versions(where / root, own, tokenizer_config, "fast_tokenizer_files"))
    if code:
        files.update(name for name in own if name.endswith(".py") and "/" not in name)
    whole = {root + name for name in files}
    behind: list[str] = []
    if "modules.json" in names:  # also one that lists nothing that is understood: vectors are then refused
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
                f"{where} has no file {pattern!r}, which the entry lists as one of the model's (extra_files).",
                path=str(where),
                missing=(pattern,),
            )
        whole.update(chosen)
    adapter = next((root + name for name in sorted(own) if fnmatchcase(name, "adapter_model.*")), None)
    return Layout(
        root,
        tuple(root + name for name in weights),
        None if index is None else root + index,
        tuple(behind),
        adapter if "adapter_config.json" in own and weights else None,
        tuple(sorted(whole | set(behind))),
        tuple(sorted(names)),
    )


def present(folder: Path) -> list[str]:
    """Return the files of a folder and of its subfolders, by path; in deeper ones no loader looks.

    A link that leads nowhere is one of them: a file that is missing is another thing than one that was never there.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.scandir(folder).close()  # what may not be read is not empty, as a glob has it
    files = (file for pattern in ("*", "*/*") for file in folder.glob(pattern))
    return [file.relative_to(folder).as_posix() for file in files if file.is_file() or _is_broken(file)]


def _is_broken(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def is_plain_path(path: object) -> TypeGuard[str]:
    """Return whether a path stays in the folder that it is joined to, on every system."""
    if not isinstance(path, str):
        return False
    parts = path.split("/")
    return len(path) <= 1000 and not {"", ".", ".."} & set(parts) and not re.search(r"[\\:\x00-\x1f\x7f]", path)


def _weights(
    where: Path, own: Collection[str], config: Mapping[str, Any], read: Callable[[str], dict[str, Any]]
) -> tuple[tuple[str, ...], str | None]:
    """Return the weight files, in order, and their index: as transformers looks for them."""
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
    """Give the files for other versions of transformers that a config lists: its loader takes one of them."""
    listed = config.get(field) or []
    for name in listed if isinstance(listed, list) else (None,):
        if not is_plain_path(name):
            raise SourceError(f"{where} lists files under {field!r} that are none of the model's.", path=str(where))
        if name in own:
            yield name


def _modules(where: Path, names: Collection[str], read: Read) -> list[tuple[str, str]]:
    """Return the modules of a folder of sentence-transformers: the class's name, and its folder with a slash or ""."""
    if "modules.json" not in names:
        return []
    found = []
    for module in read("modules.json", list):
        kind, path = (module.get("type"), module.get("path", "")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str):  # another tool's file, or one that no task can follow
            continue
        if path != "" and (not is_plain_path(path) or "/" in path):
            raise SourceError(f"{where / 'modules.json'} names a folder that is none of the model's.", path=str(where))
        found.append((kind.rpartition(".")[2], f"{path}/" if path else ""))
    return found

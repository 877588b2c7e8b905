"""Finds a model's weights on this machine. It looks at names and sizes only, so that listing is fast."""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from medvllm.metadata import ModelMetadata
from medvllm.names import is_commit, parse_name

_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WEIGHTS = re.compile(r"(?:model|pytorch_model)(?:-\d+-of-(\d+))?\.(?:safetensors|bin)")


@dataclass(frozen=True)
class LocalFiles:
    """A folder that contains a model, and the total size of its weights."""

    folder: Path
    size_bytes: int


def local_files(entry: ModelMetadata) -> LocalFiles | None:
    """Return where an entry's files are on this machine, or None if they are missing or incomplete.

    This only checks names and sizes. Loading a model verifies every byte.
    """
    location = parse_name(entry.location)
    if location.kind == "folder":
        return _find_weights(Path(location.name), adapter=entry.is_adapter)
    if "/" not in location.name and not location.is_repo_id:
        return None
    repository = repository_folder(location.name)
    revision = location.suffix or entry.source.revision or "main"
    for commit in _commits(repository, revision):
        if found := _find_weights(repository / "snapshots" / commit, adapter=entry.is_adapter):
            return found
    return None


def hub_cache() -> Path:
    """Return the folder of the Hub's cache, without importing huggingface_hub."""
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        return Path(constants.HF_HUB_CACHE)
    read = os.environ.get  # as in huggingface_hub, a variable that is set but empty counts
    home = os.path.expandvars(
        os.path.expanduser(read("HF_HOME", os.path.join(read("XDG_CACHE_HOME", "~/.cache"), "huggingface")))
    )
    stated = read("HF_HUB_CACHE", read("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(os.path.expandvars(os.path.expanduser(stated)))


def repository_folder(repo: str) -> Path:
    """Return the folder of a repository in the Hub's cache. It need not exist."""
    return hub_cache() / name_in_cache(repo)


def name_in_cache(repo: str) -> str:
    """Return the name of a repository's folder in the Hub's cache."""
    return f"models--{repo.replace('/', '--')}"


def _commits(repository: Path, revision: str) -> list[str]:
    """Return the commits that a revision may mean: itself, or what the cache recorded, or else all in the cache."""
    if is_commit(revision):
        return [revision]
    try:
        return [(repository / "refs" / revision).read_text(encoding="ascii").strip()]
    except (OSError, ValueError):
        return _names(repository / "snapshots")


def _find_weights(folder: Path, *, adapter: bool) -> LocalFiles | None:
    """Return the model in a folder, or None if a file that it needs is missing."""
    names = _names(folder)
    # Old sentence-transformers models keep the transformer in a subfolder.
    if "modules.json" in names and "config.json" not in names and (folder / "0_Transformer").is_dir():
        folder = folder / "0_Transformer"
        names = _names(folder)
    if adapter:
        config, weights = "adapter_config.json", [name for name in _ADAPTER_WEIGHTS if name in names][:1]
    else:
        config, weights = "config.json", _weights(folder, names)
    if config not in names or not weights:
        return None
    try:
        return LocalFiles(folder, sum(os.stat(folder / name).st_size for name in weights))
    except (OSError, ValueError):  # a missing shard, a broken link, or a name that cannot be a path
        return None


def _weights(folder: Path, names: list[str]) -> list[str]:
    """Return the names of the weight files. Safetensors take precedence over pickles, and an index over names."""
    for kind, index in ((".safetensors", "model.safetensors"), (".bin", "pytorch_model.bin")):
        if index in names:
            return [index]
        if f"{index}.index.json" in names:
            return _shards(folder / f"{index}.index.json")
        if found := [name for name in names if name.endswith(kind) and _WEIGHTS.fullmatch(name)]:
            return found
    return []


def _shards(index: Path) -> list[str]:
    """Return the files that an index lists, or nothing if the index cannot be read."""
    try:
        listed = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return sorted(listed) if all(isinstance(name, str) for name in listed) else []


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, or nothing if the folder cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []

"""A snapshot: a local folder with one commit's files, and what its files say of themselves."""

import hashlib
import json
import math
import os
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvllm.errors import IncompleteSnapshotError, SourceError
from medvllm.sources.digest import Digest, stamp
from medvllm.sources.ledger import Stamp

if TYPE_CHECKING:
    from medvllm.sources.sentence import Declaration

__all__ = ["Snapshot", "check_complete", "is_weights", "needed", "present", "read_json", "weight_files"]

# What a load may read, as globs on paths in a repository; `*` crosses folders.
DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS = ("model.safetensors", "model-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")
OTHER_FORMATS = ["onnx/*", "openvino/*", "coreml/*", "original/*", "*/*.safetensors", "*/*.bin"]
OTHER_FORMATS += ["*/*/*"]  # folders in folders: no load reads them

MAX_HEADER = 100_000_000  # bytes; the safetensors format allows no more
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
# Fields of a config by which transformers makes lists before it looks at any weight.
_COUNTED = re.compile(r"(layers?|labels|_types|dense_replace)$")


@dataclass(frozen=True)
class Snapshot:
    """A local folder, the repository and commit it holds (None for a folder of the user's own), and its weights."""

    path: Path
    repo: str | None
    commit: str | None
    weights: Path  # the folder that holds the weights: `path`, or where their converted copy lies
    files: Mapping[str, Digest] = field(hash=False)  # what a load reads of `path`, by path in it
    converted: Mapping[str, Digest] = field(default_factory=dict, hash=False)  # what it reads of `weights` instead
    locked: bool = False  # whether the lock file approves of the files

    @property
    def root(self) -> str:
        """The folder in the snapshot that holds the model's config, with a slash behind it; "" for its top."""
        return ""

    def file(self, name: str) -> Path:
        """Return where a file of the set lies; a name of `converted` leads to the converted weights."""
        return (self.weights if name in self.converted else self.path) / name

    @cached_property
    def identity(self) -> str:
        """What two loads of the same bytes share: repo@commit, or the folder's real path and its files' stamps."""
        if self.repo:
            return f"{self.repo}@{self.commit}"
        digest = hashlib.sha256(repr(self.stamps).encode()).hexdigest()
        return f"{self.path.resolve()}@{digest[:12]}"

    @cached_property
    def stamps(self) -> tuple[tuple[str, int, int], ...]:
        """Path, size and modification time of the config and weight files, as they were when first asked."""
        files = [self.path / "config.json", *weight_files(self.path), *weight_files(self.path, pickled=True)]
        return tuple((str(file), status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()])

    def is_current(self) -> bool:
        """Return whether the files are still those of the snapshot. A commit's never change; a user's folder may."""
        if self.repo:
            return True
        try:
            for file, size, modified in self.stamps:
                now = os.stat(file)
                if now.st_size != size or now.st_mtime_ns != modified:
                    return False
        except OSError:
            return False
        return True

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        config: dict[str, Any] = read_json(self.path / "config.json")
        return config

    @cached_property
    def headers(self) -> tuple[dict[str, Any], ...]:
        """The header of each safetensors file, checked against the file's size."""
        return tuple(_header_of(file, stamp(file)) for file in weight_files(self.weights))

    def size_bytes(self, dtype: str) -> int:
        """Return the bytes of the weights with floating ones in `dtype`, as their headers tell."""
        wanted = next((_BYTES[kind] for kind, name in _DTYPES.items() if name == dtype), 4)
        return sum(
            (tensor["data_offsets"][1] - tensor["data_offsets"][0])
            if tensor["dtype"] not in _DTYPES
            else math.prod(tensor["shape"]) * wanted
            for header in self.headers
            for tensor in header.values()
        )

    def check(self) -> None:
        """Raise SourceError when the config or a weight file is damaged: no such byte reaches a parser of tensors.

        Nor does a tensor that two files hold, or a number of layers or labels that the weights do not account for.
        """
        names = [name for header in self.headers for name in header]
        if twice := next((name for name, times in Counter(names).items() if times > 1), None):
            raise SourceError(f"{self.weights} has two tensors {twice[:200]!r}: one in each of two files.")
        sizes = (size for header in self.headers for tensor in header.values() for size in tensor["shape"])
        most = max(len(names), *sizes, 1)
        for what, count in _counts(self.config):
            if count > most:
                file = self.path / "config.json"
                raise SourceError(
                    f"{file} has {count:,} for {what[:80]!r}, and the weights account for {most:,}.", path=str(file)
                )

    @property
    def dtype(self) -> str | None:
        """The checkpoint's own dtype: the config's word, or that of the first floating tensor."""
        stated = self.config.get("dtype") or self.config.get("torch_dtype")
        if isinstance(stated, str) and stated in _DTYPES.values():
            return stated
        tensors = (tensor for header in self.headers for tensor in header.values())
        return next((_DTYPES[tensor["dtype"]] for tensor in tensors if tensor["dtype"] in _DTYPES), None)

    @cached_property
    def declaration(self) -> "Declaration | None":
        """What the folder says of its vectors; None unless sentence-transformers wrote it."""
        from medvllm.sources.sentence import declared  # which reads snapshots

        return declared(self)

    @property
    def sentence_transformer(self) -> dict[str, Any]:
        """The facts that a folder of sentence-transformers completes an entry with; empty for others."""
        return {} if self.declaration is None else self.declaration.facts


def needed(names: Collection[str], *, code: bool = False) -> list[str]:
    """Return those of a commit's files that a load may read: one format of weights, and what describes the model.

    Those are at its top or one folder down. `code`: also the modules at its top, among which a repository's own classes
    are.
    """
    own = [name for name in names if not _matches(name, OTHER_FORMATS)]
    weights = [name for name in own if is_weights(name)] or [name for name in own if _matches(name, PICKLES)]
    code_files = [name for name in own if code and name.endswith(".py") and "/" not in name]
    modules = [name for name in names if "modules.json" in names and fnmatchcase(name, "[0-9]*_*/model.safetensors")]
    return sorted({*weights, *code_files, *modules, *(name for name in own if _matches(name, DESCRIPTION))})


def is_weights(name: str) -> bool:
    """Return whether a path is one of safetensors weights of the model itself."""
    return _matches(name, WEIGHTS) and not _matches(name, OTHER_FORMATS)


def present(folder: Path) -> list[str]:
    """Return the files of a folder and of its subfolders; deeper ones no load reads."""
    files = (file for pattern in ("*", "*/*") for file in folder.glob(pattern))
    return [file.relative_to(folder).as_posix() for file in files if file.is_file()]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def read_json(file: Path, kind: type = dict) -> Any:
    """Return a JSON file's content, or SourceError when it is not what it should be."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise IncompleteSnapshotError(f"{file.parent} has no {file.name}.", path=str(file)) from error
    except (ValueError, RecursionError, OSError) as error:
        raise SourceError(f"{file} cannot be read as JSON: {error}.", path=str(file)) from error
    if not isinstance(content, kind):
        raise SourceError(f"{file} holds no JSON {'object' if kind is dict else 'list'}.", path=str(file))
    return content


def weight_files(folder: Path, *, pickled: bool = False) -> list[Path]:
    """Return the weight files of a checkpoint, in order; an empty list when it has none of that format.

    IncompleteSnapshotError names the shards that the index lists and the folder lacks.
    """
    single, index = (
        ("pytorch_model.bin", "pytorch_model.bin.index.json")
        if pickled
        else (
            "model.safetensors",
            "model.safetensors.index.json",
        )
    )
    if (folder / single).is_file():
        return [folder / single]
    if not (folder / index).is_file():
        return []
    shards = read_json(folder / index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(_is_plain(shard) for shard in shards.values()):
        raise SourceError(f"{folder / index} does not list the shards of a checkpoint.", path=str(folder / index))
    files = [folder / shard for shard in sorted(set(shards.values()))]
    if missing := [file.name for file in files if not os.path.isfile(file)]:  # Path.is_file raises for a long name
        raise IncompleteSnapshotError(
            f"{folder} is incomplete: {', '.join(missing[:3])} {'is' if len(missing) == 1 else 'are'} missing.",
            path=str(folder),
            missing=tuple(missing),
        )
    return files


def check_complete(snapshot: Snapshot) -> None:
    """Raise unless the snapshot has a config and weights that can be used."""
    path, what = snapshot.path, f"Snapshot of {snapshot.repo!r} at {str(snapshot.commit)[:7]}"
    subject = what if snapshot.repo else str(path)
    facts = {"path": str(path), "repo": snapshot.repo, "commit": snapshot.commit}
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise SourceError(
                f"{subject} holds an adapter, not a model.\nMerge it into its base model and register the result.",
                **facts,
            )
        raise IncompleteSnapshotError(
            f"{subject} has no config.json, so it is not a model's folder.\n{_listing(path)}", **facts
        )
    if not (weight_files(path) or weight_files(path, pickled=True)):
        raise IncompleteSnapshotError(
            f"{subject} has no weights: neither model.safetensors nor pytorch_model.bin is there.\n{_listing(path)}",
            **facts,
        )


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"It holds: {', '.join(names[:8])}{more}" if names else "It is empty."


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name == Path(name).name and name not in ("", ".", "..")


@lru_cache(maxsize=128)
def _header_of(file: Path, stamp: Stamp) -> dict[str, Any]:
    """Return the header of a file as it stands: a reload need not read it again."""
    return _header(file)


def _header(file: Path) -> dict[str, Any]:
    """Return a safetensors header without its metadata; SourceError unless it fits the file to the byte."""
    size = file.stat().st_size
    if size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
        raise IncompleteSnapshotError(
            f"{file} is a pointer of Git LFS, not the weights.\nFetch them with: git lfs pull", path=str(file)
        )
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
            text = stream.read(length).decode() if length <= min(MAX_HEADER, size - 8) else "null"
        header: Any = json.loads(text, object_pairs_hook=_once)
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        notes = header.get("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
            raise ValueError("the metadata are no texts")
        end = _end(tensors.values())
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, OSError) as error:
        raise SourceError(
            f"{file} is not a sound safetensors file: its header cannot be read.", path=str(file)
        ) from error
    if 8 + length + end != size:
        raise IncompleteSnapshotError(
            f"{file} is {'cut short' if size < 8 + length + end else 'too long'}: "
            f"{size:,} bytes, where its header describes {8 + length + end:,}.",
            path=str(file),
        )
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _end(tensors: Iterable[Mapping[str, Any]]) -> int:
    """Return the offset behind the last byte; ValueError when the tensors do not lie one behind the other, each in the
    bytes that its shape and dtype need."""
    reached = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor["data_offsets"]):
        (begin, end), shape = tensor["data_offsets"], tensor["shape"]
        if {type(number) for number in (begin, end, *shape)} != {int} or min(shape, default=0) < 0:
            raise ValueError("offsets or shape are not whole numbers")
        itemsize = _BYTES.get(tensor["dtype"])  # of a dtype that is not known, only the order is checked
        if not reached == begin <= end or (itemsize is not None and end - begin != itemsize * math.prod(shape)):
            raise ValueError("offsets and shape disagree")
        reached = end
    return reached


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Give each number in a config that says how many of something there are, with its field."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((field, inner) for inner in value)
        elif type(value) in (int, float) and _COUNTED.search(field):
            yield field, value
